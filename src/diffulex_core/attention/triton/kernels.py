"""The two kernels of `triton` attention: tiles of rows over the pages they see, and the sum over divided keys.

The online softmax is that of FlashAttention-2 (Dao, 2023), keys divided among programs that of Flash-Decoding.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "splits"])
def attend_tiles(
    query, key_pages, value_pages, key_start, key_end, row_sequence, page_tables, out, log_sums,
    rows, heads, splits, scale,
    query_row, query_head, key_page, key_slot, key_head, value_page, value_slot, value_head, table_row,
    divided: tl.constexpr, group: tl.constexpr, head_dim: tl.constexpr, page_size: tl.constexpr,
    width: tl.constexpr, lanes: tl.constexpr, tile_rows: tl.constexpr, tile_heads: tl.constexpr, keys: tl.constexpr,
    precision: tl.constexpr, widen: tl.constexpr,
):  # fmt: skip
    """Attention of `tile_rows` rows and `tile_heads` query heads of one KV head, over one part of their keys.

    query [rows, heads, head_dim] by its strides, pages [pages, page_size, kv_heads, head_dim] by theirs, key_start,
    key_end and row_sequence [rows] int64, page_tables [sequences, pages] int64. Not divided: out [rows, heads,
    head_dim], zero for rows that see nothing. Divided: out [splits, rows, heads, head_dim] float32, each part
    normalised by itself and left open where it sees nothing, and log_sums [splits, rows, heads], base 2, minus infinity
    there.
    Programs: tiles of rows, KV heads times tiles of their heads, splits.
    """
    head_tiles: tl.constexpr = (group + tile_heads - 1) // tile_heads
    part = tl.program_id(2)
    kv_head = tl.program_id(1) // head_tiles
    lane = tl.arange(0, lanes)
    row = tl.program_id(0) * tile_rows + lane // tile_heads
    member = tl.program_id(1) % head_tiles * tile_heads + lane % tile_heads
    used = (lane < tile_rows * tile_heads) & (member < group) & (row < rows)
    head = kv_head * group + member
    first_key = tl.load(key_start + row, mask=used, other=0).to(tl.int32)
    end_key = tl.load(key_end + row, mask=used, other=0).to(tl.int32)
    owner = tl.load(row_sequence + row, mask=used, other=0).to(tl.int32)
    sees = used & (first_key < end_key)

    d = tl.arange(0, width)
    at = row.to(tl.int64) * query_row + head * query_head
    q = tl.load(query + at[:, None] + d[None, :], mask=sees[:, None] & (d < head_dim)[None, :], other=0.0)
    if widen:
        q = q.to(tl.float32)
    high = tl.full((lanes,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((lanes,), dtype=tl.float32)
    sums = tl.zeros((lanes, width), dtype=tl.float32)

    # A tile may hold rows of several sequences; each round takes those of one. No round for a tile that sees nothing.
    waiting = sees
    rounds = tl.max(waiting.to(tl.int32), axis=0)
    while rounds > 0:
        sequence = tl.load(row_sequence + tl.min(tl.where(waiting, row, rows), axis=0)).to(tl.int32)
        mine = waiting & (owner == sequence)
        waiting = waiting & (owner != sequence)
        rounds = tl.max(waiting.to(tl.int32), axis=0)
        low = tl.min(tl.where(mine, first_key, 2147483647), axis=0)
        last = tl.max(tl.where(mine, end_key, 0), axis=0)
        # Products begin at multiples of `keys`, so that a row's sums do not depend on the rows beside it.
        begin = low // keys * keys
        stop = last
        if divided:
            share = ((last - begin + keys - 1) // keys + splits - 1) // splits * keys
            begin = begin + part * share
            stop = tl.minimum(last, begin + share)
        # Between these two all rows see all keys, if there are no rows but those of this sequence.
        all_from = (tl.max(tl.where(mine, first_key, 0), axis=0) + keys - 1) // keys * keys
        all_to = tl.min(tl.where(mine, end_key, 2147483647), axis=0) // keys * keys
        others = tl.max((sees & (mine == 0)).to(tl.int32), axis=0)
        all_from = tl.minimum(tl.maximum(all_from, begin), tl.maximum(stop, begin))
        all_to = tl.where(others > 0, all_from, tl.maximum(tl.minimum(all_to, stop), all_from))

        table = page_tables + sequence.to(tl.int64) * table_row
        k_base = key_pages + kv_head * key_head
        v_base = value_pages + kv_head * value_head
        sums, high, total = _fold(
            q, sums, high, total, table, k_base, v_base, first_key, end_key, mine, begin, all_from, low, stop,
            scale, key_page, key_slot, value_page, value_slot,
            True, head_dim, page_size, width, keys, precision, widen,
        )  # fmt: skip
        sums, high, total = _fold(
            q, sums, high, total, table, k_base, v_base, first_key, end_key, mine, all_from, all_to, low, stop,
            scale, key_page, key_slot, value_page, value_slot,
            False, head_dim, page_size, width, keys, precision, widen,
        )  # fmt: skip
        sums, high, total = _fold(
            q, sums, high, total, table, k_base, v_base, first_key, end_key, mine, all_to, stop, low, stop,
            scale, key_page, key_slot, value_page, value_slot,
            True, head_dim, page_size, width, keys, precision, widen,
        )  # fmt: skip

    # Lanes that see nothing took part where all others see everything; what they hold means nothing.
    some = sees & (total > 0)
    result = tl.where(some[:, None], sums / tl.where(some, total, 1.0)[:, None], 0.0)
    place = row.to(tl.int64) * heads + head
    if divided:
        place = part.to(tl.int64) * rows * heads + place
        tl.store(log_sums + place, tl.where(some, high + tl.log2(tl.where(some, total, 1.0)), float("-inf")), mask=used)
        kept = some
    else:
        kept = used
    target = out + place[:, None] * head_dim + d[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=kept[:, None] & (d < head_dim)[None, :])


@triton.jit
def _fold(
    q, sums, high, total, table, key_pages, value_pages, first_key, end_key, mine, begin, stop, low, last,
    scale, key_page, key_slot, value_page, value_slot,
    masked: tl.constexpr, head_dim: tl.constexpr, page_size: tl.constexpr, width: tl.constexpr, keys: tl.constexpr,
    precision: tl.constexpr, widen: tl.constexpr,
):  # fmt: skip
    """Take the slots from `begin` to `stop` of one sequence into the online softmax of all lanes.

    masked: lanes differ in what they see of these slots, of which only those in `[low, last)` are read.
    """
    d = tl.arange(0, width)
    n = tl.arange(0, keys)
    for start in range(begin, stop, keys):
        slot = start + n
        offset = slot % page_size
        if masked:
            inside = (slot >= low) & (slot < last)
            read = inside[:, None] & (d < head_dim)[None, :]
            page = tl.load(table + slot // page_size, mask=inside, other=0)
        else:
            read = (n >= 0)[:, None] & (d < head_dim)[None, :]
            page = tl.load(table + slot // page_size)
        k = tl.load(key_pages + (page * key_page + offset * key_slot)[:, None] + d[None, :], mask=read, other=0.0)
        v = tl.load(value_pages + (page * value_page + offset * value_slot)[:, None] + d[None, :], mask=read, other=0.0)
        k, v = k.to(q.dtype), v.to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision=precision) * (scale * 1.4426950408889634)
        if masked:
            visible = (slot[None, :] >= first_key[:, None]) & (slot[None, :] < end_key[:, None]) & mine[:, None]
            scores = tl.where(visible, scores, float("-inf"))
            # A slot between two intervals may never have been written; 0 times NaN is NaN.
            v = tl.where((tl.max(visible.to(tl.int32), axis=0) > 0)[:, None], v, 0.0)
        top = tl.maximum(high, tl.max(scores, axis=1))
        base = tl.where(top == float("-inf"), 0.0, top)
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(high - base)
        total = total * fade + tl.sum(weights, axis=1)
        sums = tl.dot(weights.to(q.dtype), v, acc=sums * fade[:, None], input_precision=precision)
        high = top
    return sums, high, total


@triton.jit(do_not_specialize=["rows", "splits"])
def join_parts(
    parts, log_sums, out, rows, heads, splits, head_dim: tl.constexpr, width: tl.constexpr
):  # fmt: skip
    """Put the parts of one row and head together: parts [splits, rows, heads, head_dim], out [rows, heads, head_dim].

    Each part counts by its sum of exponentials, 2 to the power of log_sums [splits, rows, heads]; zero where none sees
    anything. Programs: rows times heads.
    """
    place = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, width)
    high = tl.full((1,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((1,), dtype=tl.float32)
    sums = tl.zeros((width,), dtype=tl.float32)
    step = rows.to(tl.int64) * heads
    for part in range(splits):
        at = place + part * step
        log_sum = tl.load(log_sums + at + tl.zeros((1,), dtype=tl.int32))
        seen = log_sum > float("-inf")
        top = tl.maximum(high, log_sum)
        base = tl.where(top == float("-inf"), 0.0, top)
        weight = tl.exp2(log_sum - base)
        fade = tl.exp2(high - base)
        value = tl.load(parts + at * head_dim + d, mask=seen & (d < head_dim), other=0.0)
        sums = sums * fade + value * weight
        total = total * fade + weight
        high = top
    result = sums / tl.where(total > 0, total, 1.0)
    tl.store(out + place * head_dim + d, result.to(out.dtype.element_ty), mask=d < head_dim)
