"""Triton kernels of the experts: slots sorted by expert, two grouped matrix products, and a sum over each row."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gated_product(
    x, w13, out, slot_of_row, expert_of_tile, hidden, size, slots,
    gelu: tl.constexpr, widen: tl.constexpr, tile: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr,
):  # fmt: skip
    """`out[row] = act(gate x) * (up x)` for the rows of one tile and `columns` of the `size` outputs, summed in fp32.

    x [rows, hidden], w13 [experts, 2 * size, hidden], out [padded rows, size]; padding rows are left open. widen is for
    Triton's interpreter, which cannot multiply bfloat16.
    """
    place, column = tl.program_id(0), tl.program_id(1)
    expert = tl.load(expert_of_tile + place).to(tl.int64)
    if expert < 0:
        return
    row = place * tile + tl.arange(0, tile)
    slot = tl.load(slot_of_row + row)
    used = slot >= 0
    source = tl.where(used, slot, 0) // slots * hidden
    n, k = column * columns + tl.arange(0, columns), tl.arange(0, depth)
    rows_of_gate = w13 + expert * 2 * size * hidden + n[:, None] * hidden
    gate = tl.zeros((tile, columns), dtype=tl.float32)
    up = tl.zeros((tile, columns), dtype=tl.float32)
    for start in range(0, hidden, depth):
        at = start + k
        inside = (n < size)[:, None] & (at < hidden)[None, :]
        a = tl.load(x + source[:, None] + at[None, :], mask=used[:, None] & (at < hidden)[None, :], other=0.0)
        b = tl.load(rows_of_gate + at[None, :], mask=inside, other=0.0)
        c = tl.load(rows_of_gate + size * hidden + at[None, :], mask=inside, other=0.0)
        if widen:
            a, b, c = a.to(tl.float32), b.to(tl.float32), c.to(tl.float32)
        gate = tl.dot(a, tl.trans(b), acc=gate, input_precision="ieee")
        up = tl.dot(a, tl.trans(c), acc=up, input_precision="ieee")
    if gelu:
        slope = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    else:
        slope = gate
    act = gate / (1.0 + tl.exp(-slope))
    target = out + row.to(tl.int64)[:, None] * size + n[None, :]
    tl.store(target, (act * up).to(out.dtype.element_ty), mask=used[:, None] & (n < size)[None, :])


@triton.jit
def down_product(
    gated, w2, out, slot_of_row, expert_of_tile, hidden, size,
    widen: tl.constexpr, tile: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr,
):  # fmt: skip
    """`out[slot] = down gated[row]` for the rows of one tile and `columns` of the `hidden` outputs, in fp32.

    gated [padded rows, size], w2 [experts, hidden, size], out [slots, hidden] float32; other slots are left open.
    """
    place, column = tl.program_id(0), tl.program_id(1)
    expert = tl.load(expert_of_tile + place).to(tl.int64)
    if expert < 0:
        return
    row = place * tile + tl.arange(0, tile)
    slot = tl.load(slot_of_row + row)
    used = slot >= 0
    n, k = column * columns + tl.arange(0, columns), tl.arange(0, depth)
    total = tl.zeros((tile, columns), dtype=tl.float32)
    for start in range(0, size, depth):
        at = start + k
        source = gated + row.to(tl.int64)[:, None] * size + at[None, :]
        a = tl.load(source, mask=used[:, None] & (at < size)[None, :], other=0.0)
        weights = w2 + (expert * hidden + n[:, None]) * size + at[None, :]
        b = tl.load(weights, mask=(n < hidden)[:, None] & (at < size)[None, :], other=0.0)
        if widen:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, tl.trans(b), acc=total, input_precision="ieee")
    target = out + tl.where(used, slot, 0)[:, None] * hidden + n[None, :]
    tl.store(target, total, mask=used[:, None] & (n < hidden)[None, :])


@triton.jit
def sum_slots(outputs, ids, weights, out, hidden, slots, columns: tl.constexpr):
    """`out[row] = sum_j weights[row, j] * outputs[row * slots + j]` over the slots that take part, in order.

    outputs [rows * slots, hidden] float32, ids and weights [rows, slots], out [rows, hidden].
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * columns + tl.arange(0, columns)
    total = tl.zeros((columns,), dtype=tl.float32)
    for place in range(slots):
        slot = row * slots + place
        weight = tl.load(weights + slot)
        chosen = (tl.load(ids + slot) >= 0) & (weight != 0.0)
        value = tl.load(outputs + slot * hidden + n, mask=(n < hidden) & chosen, other=0.0)
        total += value * tl.where(chosen, weight, 0.0)
    tl.store(out + row * hidden + n, total.to(out.dtype.element_ty), mask=n < hidden)


@triton.jit(do_not_specialize=["count"])
def count_slots(ids, weights, counts, count, some: tl.constexpr):
    """How many slots with a weight chose an expert: ids and weights [count], counts [experts]. Programs: experts."""
    expert = tl.program_id(0)
    n = tl.arange(0, some)
    found = tl.zeros((some,), dtype=tl.int32)
    for start in range(0, count, some):
        found += _is_of(ids, weights, expert, start + n, count).to(tl.int32)
    tl.store(counts + expert, tl.sum(found, axis=0))


@triton.jit(do_not_specialize=["count", "tiles"])
def place_slots(
    ids, weights, counts, slot_of_row, expert_of_tile, count, tiles, experts,
    tile: tl.constexpr, width: tl.constexpr, some: tl.constexpr,
):  # fmt: skip
    """The tiles of one expert, its slots in their order, and -1 behind them; see `arrange.Arrangement`.

    ids and weights [count], counts [experts], slot_of_row [tiles * tile], expert_of_tile [tiles]. width: a power of two
    that is at least `experts`. Programs: experts, and one for the tiles that are left over.
    """
    expert = tl.program_id(0)
    each = tl.arange(0, width)
    members = tl.load(counts + each, mask=each < experts, other=0)
    needed = (members + tile - 1) // tile
    first = tl.sum(tl.where(each < expert, needed, 0), axis=0)
    mine = tl.sum(tl.where(each == expert, members, 0), axis=0)
    idle = expert >= experts
    end = tl.where(idle, tiles, first + (mine + tile - 1) // tile)
    n = tl.arange(0, some)
    for start in range(first, end, some):
        tl.store(expert_of_tile + start + n, tl.where(idle, -1, expert) + 0 * n, mask=start + n < end)
    for start in range(first * tile + mine, end * tile, some):
        tl.store(slot_of_row + start + n, (-1 + 0 * n).to(tl.int64), mask=start + n < end * tile)
    row = first * tile
    for start in range(0, tl.where(mine > 0, count, 0), some):
        chosen = _is_of(ids, weights, expert, start + n, count)
        rank = tl.cumsum(chosen.to(tl.int32), axis=0)
        tl.store(slot_of_row + row + rank - 1, (start + n).to(tl.int64), mask=chosen)
        row += tl.sum(chosen.to(tl.int32), axis=0)


@triton.jit
def _is_of(ids, weights, expert, slot, count):
    inside = slot < count
    chosen = tl.load(ids + slot, mask=inside, other=-1) == expert
    return chosen & (tl.load(weights + slot, mask=inside, other=0.0) != 0.0)
