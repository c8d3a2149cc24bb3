"""The head and the search through its logits in one: tiles of the vocabulary say a few numbers of each row.

Sums over tiles are put together with the running-maximum rule of online softmax (Milakov and Gimelshein, 2018).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "columns"])
def summed_up(
    hidden, weight, bias, excluded, lowered, penalty, watched, best, column, total, second, slant, keys, seen,
    rows, width, columns, tiles, hidden_row, weight_row,
    with_bias: tl.constexpr, num_excluded: tl.constexpr, with_lowered: tl.constexpr, num_watched: tl.constexpr,
    with_second: tl.constexpr, with_slant: tl.constexpr, num_keys: tl.constexpr,
    lanes: tl.constexpr, span: tl.constexpr, depth: tl.constexpr, precision: tl.constexpr, widen: tl.constexpr,
):  # fmt: skip
    """What `span` columns of the head hold for `lanes` rows; logits stay in registers.

    hidden [rows, width], weight [at least columns, width], bias [columns], excluded [num_excluded] int64, lowered
    [rows] int64 with penalty [rows] float32, watched [rows, num_watched] int64.
    Out, [rows, tiles] each: best float32 and its column int32 (-1 where no column is possible), total = sum of exp(x -
    best), second largest float32, slant = sum of (x - best) exp(x - best); keys [rows, tiles, num_keys] int64,
    descending, see `_key`; seen [rows, num_watched] float32, left as it is for columns that are not here.
    Programs: tiles of rows, tiles of columns; rows first, so that those that read the same weights run together.
    """
    lane = tl.program_id(0) * lanes + tl.arange(0, lanes)
    n = tl.program_id(1) * span + tl.arange(0, span)
    k = tl.arange(0, depth)
    used = lane < rows
    real = n < columns
    from_hidden = hidden + tl.where(used, lane, 0).to(tl.int64)[:, None] * hidden_row
    from_weight = weight + tl.where(real, n, 0).to(tl.int64)[:, None] * weight_row
    x = tl.zeros((lanes, span), dtype=tl.float32)
    for start in range(0, width, depth):
        at = start + k
        a = tl.load(from_hidden + at[None, :], mask=(at < width)[None, :], other=0.0)
        b = tl.load(from_weight + at[None, :], mask=(at < width)[None, :], other=0.0)
        if widen:
            a, b = a.to(tl.float32), b.to(tl.float32)
        x = tl.dot(a, tl.trans(b), acc=x, input_precision=precision)
    if with_bias:
        x += tl.load(bias + n, mask=real, other=0.0).to(tl.float32)[None, :]
    x = x.to(hidden.dtype.element_ty).to(tl.float32)
    for index in range(num_watched):
        wanted = tl.load(watched + lane.to(tl.int64) * num_watched + index, mask=used, other=-1)
        hit = (n[None, :] == wanted[:, None]) & real[None, :]
        here = tl.max(hit.to(tl.int32), axis=1) > 0
        value = tl.sum(tl.where(hit, x, 0.0), axis=1)
        tl.store(seen + lane.to(tl.int64) * num_watched + index, value, mask=used & here)
    if with_lowered:
        low = tl.load(lowered + lane, mask=used, other=-1)
        less = tl.load(penalty + lane, mask=used, other=0.0)
        x = tl.where(n[None, :] == low[:, None], x - less[:, None], x)
    possible = real
    for index in tl.static_range(num_excluded):
        possible = possible & (n != tl.load(excluded + index))
    x = tl.where(possible[None, :], x, float("-inf"))

    top = tl.max(x, axis=1)
    at_top = tl.max(tl.where((x == top[:, None]) & possible[None, :], n[None, :], -1), axis=1)
    base = tl.where(top == float("-inf"), 0.0, top)
    shifted = x - base[:, None]
    exps = tl.exp(shifted)
    place = lane.to(tl.int64) * tiles + tl.program_id(1)
    tl.store(best + place, top, mask=used)
    tl.store(column + place, at_top, mask=used)
    tl.store(total + place, tl.sum(exps, axis=1), mask=used)
    if with_second:
        tl.store(second + place, tl.max(tl.where(n[None, :] == at_top[:, None], float("-inf"), x), axis=1), mask=used)
    if with_slant:
        terms = tl.where(possible[None, :], exps * shifted, 0.0)
        tl.store(slant + place, tl.sum(terms, axis=1), mask=used)
    for index in range(num_keys):
        tl.store(keys + place * num_keys + index, _key(top, at_top), mask=used)
        x = tl.where(n[None, :] == at_top[:, None], float("-inf"), x)
        top = tl.max(x, axis=1)
        at_top = tl.max(tl.where(x == top[:, None], n[None, :], -1), axis=1)


@triton.jit
def _key(value, column):
    """int64 that is ordered as values are, and as columns are among equals; column 0 where no value is possible.

    Floats are ordered as their bits are, from the sign on, if all others are turned round below zero.
    """
    bits = value.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    at = tl.where(value == float("-inf"), 0, tl.maximum(column, 0)).to(tl.int64)
    return ordered * 4294967296 + at


@triton.jit
def put_together(
    best, column, total, second, slant, out_best, out_column, out_log_sum, out_second, out_entropy, tiles,
    with_second: tl.constexpr, with_slant: tl.constexpr, some: tl.constexpr,
):  # fmt: skip
    """One row's facts from what its tiles say; ties go to the highest column. Programs: rows.

    best, column, total, second and slant as `summed_up` gives them. Out, [rows] each: best float32, column int64 (0
    where none is possible), log_sum float64, second float32, entropy float32. `some` tiles are read at a time.
    """
    row = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, some)
    high = tl.full((some,), float("-inf"), dtype=tl.float32)
    for start in range(0, tiles, some):
        at = start + t
        high = tl.maximum(high, tl.load(best + row * tiles + at, mask=at < tiles, other=float("-inf")))
    top = tl.max(high, axis=0)
    base = tl.where(top == float("-inf"), 0.0, top)

    chosen = tl.full((some,), -1, dtype=tl.int32)
    sums = tl.zeros((some,), dtype=tl.float32)
    slants = tl.zeros((some,), dtype=tl.float32)
    for start in range(0, tiles, some):
        at = start + t
        inside = at < tiles
        value = tl.load(best + row * tiles + at, mask=inside, other=float("-inf"))
        where = tl.load(column + row * tiles + at, mask=inside, other=-1)
        mass = tl.load(total + row * tiles + at, mask=inside, other=0.0)
        chosen = tl.maximum(chosen, tl.where(value == top, where, -1))
        # A tile without a possible column has mass 0, and NaN in a tile stays NaN.
        fade = tl.exp(value - base)
        sums += mass * fade
        if with_slant:
            lean = tl.load(slant + row * tiles + at, mask=inside, other=0.0)
            slants += tl.where(value > float("-inf"), fade * (lean + mass * (value - base)), 0.0)
    winner = tl.max(chosen, axis=0)
    whole = tl.sum(sums, axis=0)
    tl.store(out_best + row, top)
    tl.store(out_column + row, tl.maximum(winner, 0).to(tl.int64))
    tl.store(out_log_sum + row, base.to(tl.float64) + tl.log(whole).to(tl.float64))
    if with_slant:
        entropy = tl.sum(slants, axis=0) / whole - tl.log(whole)
        tl.store(out_entropy + row, tl.where(whole == 0.0, 0.0, entropy))
    if with_second:
        beside = tl.full((some,), float("-inf"), dtype=tl.float32)
        for start in range(0, tiles, some):
            at = start + t
            inside = at < tiles
            value = tl.load(best + row * tiles + at, mask=inside, other=float("-inf"))
            where = tl.load(column + row * tiles + at, mask=inside, other=-1)
            next_best = tl.load(second + row * tiles + at, mask=inside, other=float("-inf"))
            beside = tl.maximum(beside, tl.where(where == winner, next_best, value))
        tl.store(out_second + row, tl.max(beside, axis=0))
