"""Traces of a scripted model, row by row: what is fed, what is stored, and which state each running block is in.

The traces A1 to A7 of the decoding rules, with the defects of the reference system corrected.
"""

from __future__ import annotations

from diffulex_core.blocks import BlockRequest
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.pattern import BlockCausal
from diffulex_core.sampling_params import DecodingThresholds
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.testing.fakes import ScriptedRunner
from diffulex_core.types import CompletionReason, SampleGroup, Window
from tests.core.traces import EOS, Row, accept_first, make_request, run


def test_a_prompt_that_ends_inside_a_block_decodes_from_its_first_forward() -> None:
    """Trace A1: B=4, N=2, P=6, two tokens a step. The second block starts at once: half of the first is prompt."""
    request = make_request(6, buffer_size=2, max_tokens=16)
    assert run(request, 2) == [
        Row(start=0, rows=12, states="TA", stored=(0, 4)),
        Row(start=4, rows=8, states="A", stored=(4, 8)),
        Row(start=8, rows=8, states="TA", stored=(8, 8)),
        Row(start=8, rows=8, states="A", stored=(8, 12)),
        Row(start=12, rows=8, states="TA", stored=(12, 12)),
        Row(start=12, rows=8, states="A", stored=(12, 16)),
        Row(start=16, rows=8, states="TA", stored=(16, 16)),
        Row(start=16, rows=8, states="A", stored=(16, 20)),
    ]
    assert request.output_tokens.tolist() == [7] * 16
    assert request.completion is CompletionReason.LENGTH_TOKENS


def test_with_one_block_the_next_starts_in_the_forward_that_stores_its_predecessor() -> None:
    """Trace A2: B=4, N=1, P=6. No forward only stores."""
    request = make_request(6, buffer_size=1, max_tokens=16)
    assert run(request, 2) == [
        Row(start=0, rows=8, states="T", stored=(0, 4)),
        Row(start=4, rows=8, states="A", stored=(4, 8)),
        Row(start=8, rows=4, states="T", stored=(8, 8)),
        Row(start=8, rows=8, states="A", stored=(8, 12)),
        Row(start=12, rows=4, states="T", stored=(12, 12)),
        Row(start=12, rows=8, states="A", stored=(12, 16)),
        Row(start=16, rows=4, states="T", stored=(16, 16)),
        Row(start=16, rows=8, states="A", stored=(16, 20)),
    ]


def test_a_stability_threshold_starts_the_next_block_only_behind_a_complete_one() -> None:
    """Trace A3: B=4, N=2, P=8, token_stability_threshold=0.5."""
    request = make_request(8, max_tokens=8, thresholds=DecodingThresholds(token_stability_threshold=0.5))
    assert run(request, 2) == [
        Row(start=0, rows=12, states="A", stored=(0, 8)),
        Row(start=8, rows=4, states="T", stored=(8, 8)),
        Row(start=8, rows=8, states="A", stored=(8, 12)),
        Row(start=12, rows=4, states="T", stored=(12, 12)),
    ]


def test_a_request_ends_when_the_tokens_before_its_first_eos_are_decided() -> None:
    """Trace A4: B=4, N=3, P=8, one token a step, EOS at position 9: two forwards, and one visible token."""
    request = make_request(8, buffer_size=3, max_tokens=30)
    rows = run(request, 1, lambda position: EOS if position == 9 else 7)
    assert rows == [
        Row(start=0, rows=12, states="A", stored=(0, 8)),
        Row(start=8, rows=8, states="AA", stored=(8, 8)),
    ]
    assert request.output_tokens.tolist() == [7]
    assert request.completion is CompletionReason.STOP_EOS


def test_a_cached_prompt_costs_no_row_and_its_first_forward_decodes() -> None:
    """Trace A5: B=S=4, P=8, the same prompt twice."""
    service = _Service(num_pages=20, page_size=4)
    service.add(make_request(8, max_tokens=4))
    service.run()
    service.add(make_request(8, max_tokens=4, request_id=1))
    [first, *_] = service.run()
    assert first == {1: (8, 4, 8)}


def test_a_page_that_is_only_partly_prompt_is_not_shared() -> None:
    """Trace A6: S=8, B=4, P=12, two identical prompts: eight cached tokens, and separate second pages."""
    service = _Service(num_pages=20, page_size=8)
    service.add(make_request(12, max_tokens=30))
    service.step()
    service.add(make_request(12, max_tokens=30, request_id=1))
    [windows] = [service.step()]
    assert windows[1] == (8, 8, 12)
    tables = [service.cache.page_table(number).tolist() for number in range(2)]
    assert tables[0][0] == tables[1][0]
    assert not set(tables[0][1:]) & set(tables[1][1:])


def test_a_request_preempted_with_a_complete_block_stores_it_when_it_resumes() -> None:
    """Trace A7: S=B=4, N=2, seven pages, two prompts of eight: the later one loses its pages and is resumed."""
    service = _Service(num_pages=7, page_size=4)
    service.add(make_request(8, max_tokens=16))
    service.add(make_request(8, max_tokens=16, request_id=1, first_token=20))
    steps = service.run()
    ends = {0: 0, 1: 0}
    preemptions = 0
    for windows in steps:
        for number, (start, rows, stored) in windows.items():
            assert start <= ends[number], "K/V of a stretch were never stored"
            preemptions += start < ends[number]
            ends[number] = stored
            assert start <= stored <= start + rows
    assert preemptions >= 1
    assert all(len(request.output_tokens) == 16 for request in service.requests)


def test_shifted_logits_change_no_forward_and_no_row_and_carry_the_last_stored_row() -> None:
    """Trace A1 with a row deciding the position behind it: `from` is the row that decides each block's first mask."""
    request, aligned = make_request(6, shifted=True), make_request(6)
    assert run(request, 2) == run(aligned, 2)
    assert request.output_tokens.tolist() == aligned.output_tokens.tolist()

    request, stored, steps = make_request(6, shifted=True), 0, []
    while request.completion is None:
        span = request.plan(stored, None)
        assert span is not None
        steps.append((span.start, [group.rows.tolist() for group in span.groups], span.keep))
        request.apply(span, accept_first(span, 2))
        stored = span.store_until
    assert steps == [
        (0, [[5, 6], [7, 8, 9, 10]], 3),
        (4, [[3, 4, 5, 6]], 7),
        (8, [[1, 2], [3, 4, 5, 6]], None),
        (8, [[3, 4, 5, 6]], 11),
        (12, [[1, 2], [3, 4, 5, 6]], None),
        (12, [[3, 4, 5, 6]], 15),
        (16, [[1, 2], [3, 4, 5, 6]], None),
        (16, [[3, 4, 5, 6]], 19),
    ]


class _Service:
    """A scheduler over a scripted model that fills two masks a step, left to right."""

    def __init__(self, *, num_pages: int, page_size: int) -> None:
        pattern = BlockCausal(block_size=4)
        self.cache = PagedKVCache(num_pages=num_pages, page_size=page_size, pattern=pattern, prefix_caching=True)
        self.scheduler = ContinuousScheduler(self.cache, max_num_reqs=4, max_num_batched_tokens=100, block_size=4)
        self.requests: list[BlockRequest] = []
        self._runner = ScriptedRunner(_first_two, lambda window, position: 7)

    def add(self, request: BlockRequest) -> None:
        self.scheduler.add(request)
        self.requests.append(request)

    def step(self) -> dict[int, tuple[int, int, int]]:
        """First position, rows and stored end of each request's window."""
        plan = self.scheduler.schedule()
        assert plan is not None
        self.scheduler.update(plan, self._runner.execute(plan))
        return {
            window.request_id: (window.span.start, len(window.span.tokens), window.span.store_until)
            for window in plan.windows
        }

    def run(self) -> list[dict[int, tuple[int, int, int]]]:
        steps = []
        while self.scheduler.has_work():
            steps.append(self.step())
        return steps


def _first_two(window: Window, group: SampleGroup) -> list[int]:
    taken: list[int] = group.positions[: 2 * group.force_one].tolist()
    return taken
