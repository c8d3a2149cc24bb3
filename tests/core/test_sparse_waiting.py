"""Sparse canvases that wait for each other's pages: who goes on meanwhile, and what that costs."""

from __future__ import annotations

from diffulex_core.sparse import SparseConfig
from tests.core.test_canvas_machine import Asked, Service


def test_a_request_is_left_out_when_the_oldest_takes_the_pages_it_had_counted_on() -> None:
    """The younger is first in line and counts on pages that are free; then the oldest needs seven of the eight. Nobody
    but the oldest could still give way, and it has its own by then."""
    service = Service(pages=8)
    large = Asked(prompt=17, length=8, block=4, slow=True, sparse=SparseConfig(retention_ratio=0.3, refresh_every=2))
    small = Asked(prompt=2, length=6, block=8, slow=True, sparse=SparseConfig(retention_ratio=0.1, refresh_every=3))
    answers = service.run([large.make(0), small.make(1)])
    assert service.reader.kinds == {"full": 3, "refresh": 6, "reuse": 5}
    assert answers == Service().run([large.make(0)]) | Service().run([small.make(1)])


def test_a_request_that_waits_for_pages_takes_no_rows_from_others() -> None:
    """76 rows are two full passes and a block, but 21 pages are rarely two full passes."""
    service = Service(pages=21, rows=76, at_once=12)
    asked = Asked(
        prompt=20,
        length=16,
        block=4,
        slow=True,
        sparse=SparseConfig(retention_ratio=0.3, refresh_every=3, delay_step=0),
    )
    service.run([asked.make(number) for number in range(12)])
    assert service.reader.kinds == {"refresh": 96, "reuse": 96}
    assert service.steps < 90
