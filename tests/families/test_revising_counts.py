"""Requests that revise tokens cost a step hardly more calls and bytes than those that fill masks."""

from __future__ import annotations

import pytest

from diffulex_core.protocols import ReqFactory
from diffulex_dmax.options import DMaxOptions
from diffulex_dmax.request import dmax_request
from diffulex_multibd.edit import edit_request
from diffulex_multibd.options import EditOptions
from tests.core.test_host_counts import BLOCK, BUFFER, PAGE, REQUESTS, STEPS, bytes_into, calls_into, count

RULES = pytest.mark.parametrize(
    ("make", "options"),
    [(edit_request, EditOptions()), (dmax_request, DMaxOptions())],
    ids=["edit", "dmax"],
)


MOST_CALLS = 140
"""As there; 117 and 133 when this was written."""
MOST_BYTES = 4_500
"""As there."""


@RULES
def test_a_request_costs_a_step_few_calls_however_long_its_prompt(make: ReqFactory, options: object) -> None:
    short, long = (count(prompt, calls_into, make, options).calls for prompt in (64, 1024))
    assert short == long <= MOST_CALLS * STEPS * REQUESTS


@RULES
def test_a_request_costs_a_step_few_bytes(make: ReqFactory, options: object) -> None:
    table = 8 * -(-(64 + BUFFER * BLOCK + STEPS) // PAGE)
    assert count(64, bytes_into, make, options).bytes / REQUESTS <= MOST_BYTES + 2 * table
