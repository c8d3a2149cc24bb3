"""How many pages the cache gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffulex_core.errors import ConfigError
from diffulex_core.sizing import choose_num_pages, free_memory

CASE: dict[str, Any] = {
    "requested": -1, "page_bytes": 100, "wanted": 50, "least": 5, "utilization": 0.5, "available": 4000
}  # fmt: skip


def pages(**changes: Any) -> int:
    return choose_num_pages(**{**CASE, **changes})


def test_the_users_number_is_taken_as_it_is() -> None:
    assert pages(requested=3) == 3


def test_automatic_takes_what_the_share_of_memory_affords() -> None:
    assert pages() == 20
    assert pages(utilization=0.25) == 10


def test_automatic_takes_no_more_than_could_ever_be_used() -> None:
    assert pages(available=10**9) == 50


def test_too_little_memory_for_one_request_says_how_much_is_missing() -> None:
    with pytest.raises(ConfigError, match="400 bytes are missing"):
        pages(available=200)


def test_the_machine_has_memory_to_give() -> None:
    assert free_memory(torch.device("cpu")) > 2**20
