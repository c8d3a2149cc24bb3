"""Kernels of one program for each row: norms, gates, merged embeddings, and the choice of experts."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_row(
    x, addend, weight, total, out, width, eps, x_row, addend_row,
    with_addend: tl.constexpr, with_weight: tl.constexpr, wide: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """`total = x + addend`, rounded, and `out` its norm; without an addend the norm of x; see `LayerKernels.normed`.

    x, addend, total and out [rows, width], weight [width]. Programs: rows.
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, block)
    inside = n < width
    value = tl.load(x + row * x_row + n, mask=inside, other=0.0).to(tl.float32)
    if with_addend:
        value += tl.load(addend + row * addend_row + n, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + row * width + n, rounded, mask=inside)
        value = rounded.to(tl.float32)
    scaled = _scaled(value, weight, n, inside, width, eps, out.dtype.element_ty, with_weight, wide)
    tl.store(out + row * width + n, scaled, mask=inside)


@triton.jit
def norm_and_add_row(
    x, addend, weight, out, width, eps, x_row, addend_row, wide: tl.constexpr, block: tl.constexpr
):  # fmt: skip
    """`out = x + norm(addend)`, the norm rounded: x, addend and out [rows, width], weight [width]. Programs: rows."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, block)
    inside = n < width
    value = tl.load(addend + row * addend_row + n, mask=inside, other=0.0).to(tl.float32)
    scaled = _scaled(value, weight, n, inside, width, eps, out.dtype.element_ty, True, wide).to(tl.float32)
    total = tl.load(x + row * x_row + n, mask=inside, other=0.0).to(tl.float32) + scaled
    tl.store(out + row * width + n, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _scaled(
    value, weight, n, inside, width, eps, dtype: tl.constexpr, with_weight: tl.constexpr, wide: tl.constexpr
):  # fmt: skip
    """[block] the norm of one row in fp32, rounded to a dtype before the weight as well unless it is wide."""
    value = value * tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
    if with_weight:
        if not wide:
            value = value.to(dtype).to(tl.float32)
        value = value * tl.load(weight + n, mask=inside, other=0.0).to(tl.float32)
    return value.to(dtype)


@triton.jit
def gate_row(packed, out, size, packed_row, gelu: tl.constexpr, columns: tl.constexpr):
    """`out = rounded(act(gate)) * up`: packed [rows, 2 * size], out [rows, size]. Programs: rows, tiles of columns."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * columns + tl.arange(0, columns)
    inside = n < size
    gate = tl.load(packed + row * packed_row + n, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(packed + row * packed_row + size + n, mask=inside, other=0.0).to(tl.float32)
    if gelu:
        slope = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    else:
        slope = gate
    act = (gate / (1.0 + tl.exp(-slope))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * size + n, (act * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def blend_row(table, ids, weights, match_norm, out, hidden, count, table_row, block: tl.constexpr):
    """`sum_j weights[j] * table[ids[j]]`, scaled to `sum_j weights[j] * |table[ids[j]]|` where match_norm says so.

    table [vocab, hidden], ids [rows, count] int64, weights [rows, count] float32, match_norm [rows] int8, out [rows,
    hidden]. Programs: rows.
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, block)
    inside = n < hidden
    total = tl.zeros((block,), dtype=tl.float32)
    wanted = 0.0
    for place in range(count):
        token = tl.load(ids + row * count + place)
        share = tl.load(weights + row * count + place)
        value = tl.load(table + token * table_row + n, mask=inside, other=0.0).to(tl.float32)
        total += share * value
        wanted += share * tl.sqrt(tl.sum(value * value, axis=0))
    has = tl.maximum(tl.sqrt(tl.sum(total * total, axis=0)), 1e-12)
    scale = tl.where(tl.load(match_norm + row) != 0, wanted / has, 1.0)
    tl.store(out + row * hidden + n, (total * scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def route_row(
    logits, bias, out_ids, out_weights, scale, experts: tl.constexpr, chosen: tl.constexpr, block: tl.constexpr,
    slots: tl.constexpr, sigmoid: tl.constexpr, with_bias: tl.constexpr, renormalize: tl.constexpr,
    groups: tl.constexpr, groups_kept: tl.constexpr,
):  # fmt: skip
    """The experts of one token, best first, and their weights; see `layers.moe.routing.choose`.

    logits [rows, experts] float32, bias [experts] float32, out_ids [rows, chosen] int32, out_weights [rows, chosen]
    float32. groups: 1 where all experts are eligible; block and slots: powers of two. Programs: rows.
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, block)
    real = n < experts
    value = tl.load(logits + row * experts + n, mask=real, other=float("-inf"))
    if sigmoid:
        scores = 1.0 / (1.0 + tl.exp(-value))
    else:
        exps = tl.exp(value - tl.max(value, axis=0))
        scores = exps / tl.sum(exps, axis=0)
    merit = scores
    if with_bias:
        merit += tl.load(bias + n, mask=real, other=0.0)
    free = real
    merit = tl.where(real, merit, float("-inf"))
    if groups > 1:
        size: tl.constexpr = experts // groups
        group = n // size
        leaders = tl.full((block,), float("-inf"), dtype=tl.float32)  # by group
        for index in tl.static_range(groups):
            mine = tl.where(group == index, merit, float("-inf"))
            first = tl.max(mine, axis=0)
            both = first
            if size > 1:
                at = tl.min(tl.where(real & (group == index) & (mine == first), n, block), axis=0)
                both = first + tl.max(tl.where(n == at, float("-inf"), mine), axis=0)
            leaders = tl.where(n == index, both, leaders)
        open_groups = n < groups
        eligible = n < 0
        for _ in tl.static_range(groups_kept):
            lead = tl.max(tl.where(open_groups, leaders, float("-inf")), axis=0)
            kept = tl.min(tl.where(open_groups & (leaders == lead), n, groups - 1), axis=0)
            open_groups = open_groups & (n != kept)
            eligible = eligible | (group == kept)
        merit = tl.where(eligible, merit, float("-inf"))
    place = tl.arange(0, slots)
    ids = tl.zeros((slots,), dtype=tl.int32)
    weights = tl.zeros((slots,), dtype=tl.float32)
    total = 0.0
    for index in tl.static_range(chosen):
        best = tl.max(tl.where(free, merit, float("-inf")), axis=0)
        expert = tl.min(tl.where(free & (merit == best), n, experts - 1), axis=0)
        free = free & (n != expert)
        weight = tl.sum(tl.where(n == expert, scores, 0.0), axis=0)
        total += weight
        ids = tl.where(place == index, expert, ids)
        weights = tl.where(place == index, weight, weights)
    if renormalize:
        if sigmoid:
            weights = weights / (total + 1e-20)
        else:
            weights = weights / total
    tl.store(out_ids + row * chosen + place, ids, mask=place < chosen)
    tl.store(out_weights + row * chosen + place, weights * scale, mask=place < chosen)
