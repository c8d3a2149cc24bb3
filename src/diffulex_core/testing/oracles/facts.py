"""The facts of rows of logits by their definition: a row, a column at a time, with Python's own numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffulex_core.sampling.facts import Facts, Wanted


def facts(logits: Tensor, wanted: Wanted) -> Facts:
    """What `SelectingNetwork.select` says of rows with these logits [rows, columns]."""
    rows = [[float(value) for value in row] for row in logits.double().cpu()]
    told = [_row(row, index, wanted) for index, row in enumerate(rows)]

    def collected(at: int, dtype: torch.dtype, asked: bool = True, width: int | None = None) -> Tensor | None:
        # Without rows nothing says how many numbers each has.
        shape = (0, width) if width is not None and not rows else None
        found = torch.tensor([each[at] for each in told], dtype=dtype)
        return (found if shape is None else found.view(shape)) if asked else None

    best, column, log_sum = (
        collected(at, dtype) for at, dtype in enumerate((torch.float32, torch.int64, torch.double))
    )
    assert best is not None
    assert column is not None
    assert log_sum is not None
    watched = None if wanted.watched is None else wanted.watched.shape[1]
    return Facts(
        best=best,
        column=column,
        log_sum=log_sum,
        second=collected(3, torch.float32, wanted.second),
        entropy=collected(4, torch.float32, wanted.entropy),
        top=collected(5, torch.float32, wanted.top > 0, wanted.top),
        top_columns=collected(6, torch.int64, wanted.top > 0, wanted.top),
        watched=collected(7, torch.float32, wanted.watched is not None, watched),
    )


def scores(row: list[float], index: int, wanted: Wanted) -> dict[int, float]:
    """The values of the columns that may be chosen, lowered where the row says so."""
    found = {column: row[column] for column in range(min(wanted.columns, len(row)))}
    if wanted.lowered is not None and wanted.penalty is not None and index < len(wanted.lowered):
        low = int(wanted.lowered[index])
        if low in found:
            found[low] -= float(wanted.penalty[index])
    return {column: value for column, value in found.items() if column not in wanted.excluded}


def _row(row: list[float], index: int, wanted: Wanted) -> tuple[object, ...]:
    found = scores(row, index, wanted)
    ranked = sorted(((value, column) for column, value in found.items() if value != -math.inf), reverse=True)
    best, column = ranked[0] if ranked else (-math.inf, 0)
    powers = [math.exp(value - best) for value, _ in ranked]
    total = math.fsum(powers)
    log_sum = best + math.log(total) if ranked else -math.inf
    entropy = math.fsum(power / total * math.log(power / total) for power in powers if power > 0)
    missing = [(-math.inf, 0)] * max(0, wanted.top - len(ranked))
    most = [*ranked[: wanted.top], *missing]
    watched = [] if wanted.watched is None else [int(each) for each in wanted.watched[index]]
    seen = [row[at] if 0 <= at < wanted.columns else -math.inf for at in watched]
    second = ranked[1][0] if len(ranked) > 1 else -math.inf
    return best, column, log_sum, second, entropy, [value for value, _ in most], [at for _, at in most], seen
