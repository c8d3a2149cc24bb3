"""The table of hidden rows: each request gets back what was kept for it last."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from diffulex_core.hidden_rows import HiddenRows

STEPS = st.lists(st.tuples(st.sampled_from(["keep", "drop"]), st.sets(st.integers(0, 30), max_size=12)), max_size=20)


@given(steps=STEPS)
def test_it_is_a_dictionary_of_rows(steps: list[tuple[str, set[int]]]) -> None:
    table, expected, count = HiddenRows(), dict[int, float](), 0
    for action, requests in steps:
        if action == "drop":
            table.drop(requests)
            expected = {request: value for request, value in expected.items() if request not in requests}
            continue
        ordered = sorted(requests, reverse=True)
        values = [float(count + place) for place in range(len(ordered))]
        count += len(ordered)
        table.keep(ordered, torch.tensor(values)[:, None].expand(-1, 3))
        expected |= dict(zip(ordered, values, strict=True))
        assert len(table) == len(expected)
        if expected:
            wanted = torch.tensor(list(expected.values()))[:, None].expand(-1, 3)
            assert torch.equal(table.take(list(expected)), wanted)


def test_what_is_taken_and_what_was_given_are_copies() -> None:
    table, given_row = HiddenRows(), torch.ones(1, 4)
    table.keep([3], given_row)
    given_row.zero_()
    table.take([3]).zero_()
    assert torch.equal(table.take([3]), torch.ones(1, 4))


def test_places_of_requests_that_ended_are_used_again() -> None:
    table = HiddenRows()
    for number in range(1000):
        table.keep([number], torch.full((1, 2), float(number)))
        table.drop([number - 1])
    assert len(table) == 1
    assert table.take([999])[0, 0] == 999


def test_a_row_that_nobody_kept_is_an_error() -> None:
    table = HiddenRows()
    with pytest.raises(KeyError):
        table.take([1])
    table.keep([1], torch.zeros(1, 2))
    with pytest.raises(KeyError):
        table.take([1, 2])
