"""The kernel between the projections and attention: norms, rotation, and the write into pages, head by head."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def turn_head(
    query, key, value, query_norm, key_norm, cos, sin, slots, out_query, out_key, out_value, key_pages, value_pages,
    heads, kv_heads, eps, query_row, query_head, key_row, key_head, value_row, value_head,
    with_norms: tl.constexpr, wide: tl.constexpr, norm_values: tl.constexpr,
    head_dim: tl.constexpr, half: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """One head of one row: a query is normalised and turned, a key is so too and stored, a value is stored.

    query [rows, heads, head_dim], key and value [rows, kv_heads, head_dim] by their strides, norms [head_dim], cos and
    sin [rows, half] float32: dimension j < half is paired with j + half, those from 2 * half on pass. slots [rows]
    int64, -1 stores nothing. Outputs have the shapes of query, key and value, that of values is written where
    norm_values makes them others; pages are [slots, kv_heads, head_dim]. Programs: rows, heads + 2 * kv_heads.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, width)
    inside = d < head_dim
    slot = tl.load(slots + row)
    stored = inside & (slot >= 0)
    if head < heads:
        turned = _turned(
            query + row * query_row + head * query_head, query_norm, cos, sin, row, eps,
            with_norms, wide, head_dim, half, width,
        )  # fmt: skip
        tl.store(out_query + (row * heads + head) * head_dim + d, turned, mask=inside)
    elif head < heads + kv_heads:
        index = head - heads
        turned = _turned(
            key + row * key_row + index * key_head, key_norm, cos, sin, row, eps,
            with_norms, wide, head_dim, half, width,
        )  # fmt: skip
        tl.store(out_key + (row * kv_heads + index) * head_dim + d, turned, mask=inside)
        target = key_pages + (slot * kv_heads + index) * head_dim + d
        tl.store(target, turned.to(key_pages.dtype.element_ty), mask=stored)
    else:
        index = head - heads - kv_heads
        number = tl.load(value + row * value_row + index * value_head + d, mask=inside, other=0.0)
        if norm_values:
            full = number.to(tl.float32)
            number = (full * tl.rsqrt(tl.sum(full * full, axis=0) / head_dim + eps)).to(value.dtype.element_ty)
            tl.store(out_value + (row * kv_heads + index) * head_dim + d, number, mask=inside)
        target = value_pages + (slot * kv_heads + index) * head_dim + d
        tl.store(target, number.to(value_pages.dtype.element_ty), mask=stored)


@triton.jit
def _turned(
    x, weight, cos, sin, row, eps, with_norms: tl.constexpr, wide: tl.constexpr, head_dim: tl.constexpr,
    half: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """[width] one head, normalised and turned, rounded as it is stored."""
    d = tl.arange(0, width)
    inside = d < head_dim
    pair = tl.where(d < half, d + half, d - half)
    paired = d < 2 * half
    angle = tl.where(d < half, d, d - half)
    own = tl.load(x + d, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(x + pair, mask=paired, other=0.0).to(tl.float32)
    if with_norms:
        factor = tl.rsqrt(tl.sum(own * own, axis=0) / head_dim + eps)
        own, other = own * factor, other * factor
        if not wide:
            own, other = own.to(x.dtype.element_ty).to(tl.float32), other.to(x.dtype.element_ty).to(tl.float32)
        own = own * tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
        other = other * tl.load(weight + pair, mask=paired, other=0.0).to(tl.float32)
        own, other = own.to(x.dtype.element_ty).to(tl.float32), other.to(x.dtype.element_ty).to(tl.float32)
    c = tl.load(cos + row * half + angle, mask=paired, other=1.0)
    s = tl.load(sin + row * half + angle, mask=paired, other=0.0)
    return (own * c + tl.where(d < half, -other, other) * s).to(x.dtype.element_ty)
