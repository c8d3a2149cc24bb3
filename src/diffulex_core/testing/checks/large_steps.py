"""Checks of networks where short tests do not reach: in steps of many rows, and at far positions."""

from __future__ import annotations

from random import Random

import attrs
import torch
from torch import Tensor

from diffulex_core.config.derive import LENGTH_KEYS
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.checks.other_numbers import takes
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.forward import Fed, Memory, Spy, hidden_rows, network_of
from diffulex_core.testing.sequences import (
    PAGE,
    Pass,
    draws,
    noise,
    pages_for,
    run_alone,
    run_passes,
    scattered,
    token_ids,
)
from diffulex_core.testing.subjects import FamilySubject
from diffulex_core.testing.tolerances import require_close
from diffulex_core.testing.views import cut_view

SEQUENCES, LENGTH = 26, 23
"""Of a large step, which has 598 rows: more than 512, and no multiple of 8."""
FAR = 2048
"""Positions that are looked at, where config.json allows as many."""
SAME = 1e-6
"""Share of the largest number by which equal inputs may differ, computed in other rows of one forward."""


@check(FamilySubject)
def check_many_rows_are_as_few(subject: FamilySubject, effort: Effort) -> None:
    """In a forward of some hundred rows each sequence has the logits that it has alone.

    Why: a server feeds thousands of rows in a step. What works in pieces of a fixed number of rows, or gives experts a
    capacity, is right in small tests.
    Fix: look at the end of what is cut into pieces, at capacities, and at what is done otherwise from some number of
    rows on.
    """
    network = network_of(subject)
    for draw in draws(effort, 0.05):
        view = cut_view(subject.family)
        made = [Pass(tokens=token_ids(network, LENGTH, draw), cut=0, view=view) for _ in range(SEQUENCES)]
        tables, pages = scattered([pages_for(LENGTH)] * SEQUENCES, draw)
        together = run_passes(network, made, Memory.of(network, pages, PAGE), tables)
        for place, (each, logits) in enumerate(zip(made, together, strict=True)):
            what = f"the sequence of rows {place * LENGTH} to {(place + 1) * LENGTH} of {SEQUENCES * LENGTH}"
            require_close(logits, run_alone(network, each), what)


@check(FamilySubject)
def check_far_positions_differ(subject: FamilySubject, effort: Effort) -> None:
    """Up to the length that config.json allows no two neighbouring positions are one, nor do positions come again.

    It is tried in float32 and in bfloat16, with a longer length in config.json where the family takes it.

    Why: tables of sines that end early, positions that are rounded (bfloat16 knows no odd number above 256) or that
    begin anew show in long texts only.
    Fix: compute angles in float32 from whole positions, and size tables by config.json.
    """
    longer, length = _with_length(subject)
    for dtype in (torch.float32, torch.bfloat16):
        queries = _queries(longer, dtype, length)
        if queries is None:
            return
        close = SAME * float(queries.abs().max())
        alike = (queries[1:] - queries[:-1]).abs().amax(1) <= close
        if bool(alike.all()):
            return  # positions do not enter queries, and check_positions_matter says whether they should
        if bool(alike.any()):
            at, count = int(alike.nonzero()[0]), int(alike.sum())
            raise CheckFailed(
                f"in {dtype} the queries of a token at positions {at} and {at + 1} are the same, and so are those of "
                f"{count} of {length - 1} pairs of neighbours below {length}"
            )
        for period in range(16, length - 2):
            if float((queries[period : period + 3] - queries[:3]).abs().max()) <= close:
                raise CheckFailed(f"in {dtype} positions {period}, {period + 1} ... are taken for 0, 1 ...")


def _with_length(subject: FamilySubject) -> tuple[FamilySubject, int]:
    """The subject with a config.json that allows `FAR` positions, if it takes one, and how many there are."""
    named = [name for name in LENGTH_KEYS if type(subject.config.get(name)) is int]
    if not named:
        return subject, FAR // 4
    length = subject.config[named[0]]
    if length >= FAR:
        return subject, FAR
    longer = attrs.evolve(subject, config={**subject.config, named[0]: FAR})
    return (longer, FAR) if takes(longer) else (subject, length)


def _queries(subject: FamilySubject, dtype: torch.dtype, length: int) -> Tensor | None:
    """[length, numbers] the queries of all layers for one token at each position; None where nothing shows them."""
    network = network_of(subject, dtype=dtype)
    memory = Memory.of(network, pages_for(2 * PAGE), PAGE, dtype=dtype)
    noise(memory, Random(0))
    spy, kinds = Spy(memory), range(len(network.windows))
    fed = Fed(
        tokens=token_ids(network, 1, Random(1)) * length,
        ends=[2 * PAGE] * length,
        table=range(2),
        starts=[[0] * length for _ in kinds],
        store=False,
    )
    try:
        hidden_rows(network, memory, fed, backend=spy)
    except IndexError as error:
        if any(name in subject.config for name in LENGTH_KEYS):
            raise CheckFailed(f"rows at positions below {length}, which config.json allows, raise: {error}") from error
        return None  # a table of a size that nobody knows
    seen = [call.query[:length].flatten(1).float() for call in spy.calls]
    return torch.cat(seen, dim=1) if seen else None


CHECKS: tuple[AnyCheck, ...] = (
    check_many_rows_are_as_few,
    check_far_positions_differ,
)
