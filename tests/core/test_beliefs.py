"""What a step believed is kept for each request, until it is replaced or the request ends."""

from __future__ import annotations

import pytest
import torch

from diffulex_core.beliefs import Beliefs


def test_rows_come_back_in_the_order_of_the_requests_that_are_asked_for() -> None:
    beliefs = Beliefs()
    rows = torch.arange(10.0)[:, None].expand(10, 3)
    beliefs.keep([(7, 4), (3, 2), (9, 4)], rows)
    assert beliefs.take([3, 9])[:, 0].tolist() == [4, 5, 6, 7, 8, 9]
    assert beliefs.take([9, 7])[:, 0].tolist() == [6, 7, 8, 9, 0, 1, 2, 3]


def test_new_rows_replace_the_old_ones_of_their_request_only() -> None:
    beliefs = Beliefs()
    beliefs.keep([(1, 2), (2, 2)], torch.zeros(4, 3))
    beliefs.keep([(2, 1)], torch.ones(1, 3))
    assert torch.equal(beliefs.take([1, 2]), torch.tensor([0.0, 0.0, 1.0])[:, None].expand(3, 3))


def test_rows_of_ended_requests_are_forgotten() -> None:
    beliefs = Beliefs()
    beliefs.keep([(1, 1), (2, 1)], torch.zeros(2, 3))
    beliefs.drop([1, 5])
    assert len(beliefs) == 1
    with pytest.raises(KeyError):
        beliefs.take([1])


def test_what_is_kept_of_several_requests_is_their_own() -> None:
    beliefs = Beliefs()
    rows = torch.zeros(4, 3)
    beliefs.keep([(1, 2), (2, 2)], rows)
    rows.fill_(9.0)
    assert not beliefs.take([1, 2]).any(), "one request must not hold on to the rows of its whole batch"
