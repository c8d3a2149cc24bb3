"""The head fused with the search through its logits: sizes, buffers and the two launches."""

from __future__ import annotations

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffulex_core.attention.triton.tiles import power_of_two
from diffulex_core.kernels.on_triton import precision, widened
from diffulex_core.sampling.facts import Facts, Wanted
from diffulex_core.transfer import on_device

MOST_LANES = 128
SPAN = 128
"""Columns of a tile: a vocabulary of 32,000 makes 250 tiles, enough to keep a device busy with one tile of rows."""
TILES_AT_ONCE = 1024


def select(hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
    """See `LayerKernels.select`. What is kept of each row is a few numbers for every `SPAN` columns."""
    from diffulex_core.kernels.layers.head_kernels import put_together, summed_up

    rows, width = hidden.shape
    tiles = max(1, -(-wanted.columns // SPAN))
    device, wide = hidden.device, hidden.element_size() > 2
    hidden, weight = (each if each.stride(-1) == 1 else each.contiguous() for each in (hidden, weight))

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    best, total = floats(rows, tiles), floats(rows, tiles)
    column = torch.empty(rows, tiles, dtype=torch.int32, device=device)
    second = floats(rows, tiles) if wanted.second else best
    slant = floats(rows, tiles) if wanted.entropy else best
    facts = Facts(
        best=floats(rows),
        column=torch.empty(rows, dtype=torch.int64, device=device),
        log_sum=torch.empty(rows, dtype=torch.float64, device=device),
        second=floats(rows) if wanted.second else None,
        entropy=floats(rows) if wanted.entropy else None,
        watched=None if wanted.watched is None else floats(*wanted.watched.shape).fill_(-torch.inf),
    )
    keys = torch.empty(rows, tiles, wanted.top, dtype=torch.int64, device=device)
    if rows == 0:
        return _with_top(facts, keys)
    excluded = on_device(wanted.excluded or (-1,), device, torch.int64)
    lowered, penalty, watched = (_moved(each, device) for each in (wanted.lowered, wanted.penalty, wanted.watched))
    lanes = min(MOST_LANES // (2 if wide else 1), max(16, power_of_two(rows)))
    with torch.cuda.device_of(hidden):
        summed_up[(-(-rows // lanes), tiles)](
            hidden, weight, weight if bias is None else bias, excluded, *(
                excluded if each is None else each for each in (lowered, penalty, watched)
            ), best, column, total, second, slant, keys, best if facts.watched is None else facts.watched,
            rows, width, wanted.columns, tiles, hidden.stride(0), weight.stride(0),
            with_bias=bias is not None, num_excluded=len(wanted.excluded), with_lowered=lowered is not None,
            num_watched=0 if watched is None else watched.shape[1], with_second=wanted.second,
            with_slant=wanted.entropy, num_keys=wanted.top, lanes=lanes, span=SPAN,
            depth=32 if wide else 64, precision=precision(hidden.dtype), widen=widened(hidden.dtype),
            num_warps=8 if lanes >= 64 else 4, num_stages=3 if wide else 4,
        )  # fmt: skip
        put_together[(rows,)](
            best, column, total, second, slant, facts.best, facts.column, facts.log_sum,
            facts.best if facts.second is None else facts.second,
            facts.best if facts.entropy is None else facts.entropy, tiles,
            with_second=wanted.second, with_slant=wanted.entropy, some=min(TILES_AT_ONCE, power_of_two(tiles)),
        )  # fmt: skip
    return _with_top(facts, keys)


def _with_top(facts: Facts, keys: Tensor) -> Facts:
    """The facts and the largest values of each row, out of those [rows, tiles, k] of its tiles as `_key` packs them."""
    count = keys.shape[2]
    if count == 0:
        return facts
    best = (
        keys.flatten(1).topk(count, dim=1).values
    )  # no two keys of columns are the same, so that nothing is left open
    high = best >> 32
    bits = torch.where(high < 0, high ^ 0x7FFFFFFF, high).to(torch.int32)
    return attrs.evolve(facts, top=bits.view(torch.float32), top_columns=best & 0xFFFFFFFF)


def _moved(values: NDArray[np.generic] | None, device: torch.device) -> Tensor | None:
    return None if values is None else on_device(np.ascontiguousarray(values), device)
