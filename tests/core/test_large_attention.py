"""Large runs of rows on the CPU: attention by oneDNN's products is attention, and its bits depend on nothing else."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from diffulex_core.attention import onednn
from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.attention.onednn import OneDNNAttention
from diffulex_core.attention.reference import TorchReference
from diffulex_core.layers.blocked import DTYPES, usable
from tests.core.forward import Rows, attention_batch

ABLE = [dtype for dtype in DTYPES if usable(dtype)]
PAGE = 16
NEAR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Of values that are normally distributed: bf16 has eight bits."""


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def operands(rows: int, keys: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Queries that stand behind one another with something between them, as projections give them; keys; values."""
    query = drawn(1, rows, heads + 2 * kv_heads, head_dim).to(dtype)[:, :heads]
    return query, drawn(2, keys, kv_heads, head_dim).to(dtype), drawn(3, keys, kv_heads, head_dim).to(dtype)


def exact(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """In fp64, all heads' own keys and values spelled out."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (each.double().repeat_interleave(group, dim=1) for each in (keys, values))
    weights = (torch.einsum("rhd,khd->hrk", query.double(), keys) * scale).exp()
    return torch.einsum("hrk,khd->rhd", weights / weights.sum(-1, keepdim=True), values).float()


@pytest.mark.parametrize("dtype", ABLE, ids=str)
@pytest.mark.parametrize(
    ("rows", "keys", "heads", "kv_heads", "head_dim"),
    [
        pytest.param(200, 328, 2, 2, 64, id="each head has keys of its own"),
        pytest.param(33, 577, 12, 3, 64, id="four heads share keys, nothing is a multiple of eight"),
        pytest.param(2, 8192, 7, 1, 8, id="two rows of one key head"),
        pytest.param(700, 1023, 1, 1, 16, id="more scores than are computed at a time"),
        pytest.param(333, 800, 6, 2, 8, id="more scores than at a time, of shared keys"),
        pytest.param(130, 512, 2, 1, 512, id="DiffusionGemma's widest heads"),
        pytest.param(256, 256, 1, 1, 72, id="a head that fills no vector evenly"),
    ],
)
def test_products_give_softmax_attention(
    rows: int, keys: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    q, k, v = operands(rows, keys, heads, kv_heads, head_dim, dtype)
    scale = 1.3 * head_dim**-0.5
    found = OneDNNAttention().attend(q, k, v, scale)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact(q, k, v, scale), atol=NEAR[dtype], rtol=NEAR[dtype])


@pytest.mark.parametrize("dtype", ABLE, ids=str)
def test_scores_are_not_rounded_to_the_dtype_of_queries(dtype: torch.dtype) -> None:
    """Scores of 100 and more, of which bf16 would lose up to a half: two keys of nearly the same score show it."""
    query = torch.full((256, 1, 64), 1.25, dtype=dtype)
    keys = torch.zeros(256, 1, 64, dtype=dtype)
    keys[:2] = 1.25
    keys[1, 0, 0] = 1.5  # 100 and 100.3125
    values = torch.zeros(256, 1, 64, dtype=dtype)
    values[1] = 1
    found = OneDNNAttention().attend(query, keys, values, 1.0)
    torch.testing.assert_close(found.float(), torch.full_like(found, 0.577489).float(), atol=4e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [120, 221, 222, 300])
def test_the_backend_is_near_the_reference_on_both_sides_of_the_threshold(size: int, dtype: torch.dtype) -> None:
    rows = Rows(tokens=[0] * size, key_end=[size] * size, table=list(range(-(-size // PAGE)))[::-1])
    query, keys, values = operands(size, len(rows.table) * PAGE, 4, 2, 8, dtype)
    pages = [each.unflatten(0, (-1, PAGE)) for each in (keys, values)]
    batch = attention_batch([rows], PAGE)
    few = torch.arange(0, size, 9)  # the reference takes rows one by one
    some = attention_batch([Rows(tokens=[0] * len(few), key_end=[size] * len(few), table=rows.table)], PAGE)
    found = TorchCPU().attend(query, pages[0], pages[1], batch, 0.5)
    wanted = TorchReference().attend(query[few].float(), pages[0].float(), pages[1].float(), some, 0.5)
    torch.testing.assert_close(found[few].float(), wanted, atol=NEAR[dtype], rtol=NEAR[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [8, 24, 64])
@settings(max_examples=8, deadline=None)
@given(before=st.integers(1, 40), first=st.integers(0, 20), labels=st.randoms(use_true_random=False))
def test_the_bits_of_a_large_run_are_those_it_has_alone_wherever_its_pages_lie(
    head_dim: int, dtype: torch.dtype, before: int, first: int, labels: Random
) -> None:
    """Its rows stand behind others then, at any address, and its pages among theirs; the rest of memory is NaN."""
    query, keys, values = operands(260, 300, 2, 1, head_dim, dtype)

    def attended(company: int, table: list[int], spare: int) -> Tensor:
        taken = -(-300 // PAGE)
        own = Rows(tokens=[0] * 260, key_start=[first] * 260, key_end=[300] * 260, table=table[:taken])
        mate = Rows(tokens=[0] * company, key_end=[5] * company, table=table[taken : taken + 1])
        empty = Rows(tokens=[0] * 3, key_end=[0] * 3, table=table[taken : taken + 1])
        batch = attention_batch([*([mate, empty] if company else []), own], PAGE, multiple=8)
        rows = torch.ones(company + 3 * (company > 0), 2, head_dim, dtype=dtype)
        stored = []
        for contents in (keys, values):
            pages = torch.full((len(table) + spare, PAGE, 1, head_dim), torch.nan, dtype=dtype)
            pages[table[taken]] = 1
            at = torch.arange(first, 300)
            pages[torch.tensor(own.table)[at // PAGE], at % PAGE] = contents[first:]
            stored.append(pages)
        padding = torch.ones(-(len(rows) + 260) % 8, 2, head_dim, dtype=dtype)
        out = TorchCPU().attend(torch.cat((rows, query, padding)), stored[0], stored[1], batch, 0.5)
        assert torch.isfinite(out).all()
        assert (out[len(rows) - 3 * (company > 0) : len(rows)] == 0).all()
        return out[len(rows) : len(rows) + 260]

    alone = attended(0, list(range(20)), 0)
    scattered = list(range(22))
    labels.shuffle(scattered)
    assert torch.equal(attended(before, scattered, 3), alone)


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("keys", [8, 512, 8192, 131072])
def test_a_part_of_the_rows_holds_no_more_scores_than_fit_a_cache(keys: int, group: int) -> None:
    for rows in (1, 7, 64, 513, 8192):
        step = onednn._step(rows, group, keys)
        assert step >= min(rows, 8)
        assert step % 8 == 0
        # 2 MiB in fp32; with very many keys as much as 64 rows take.
        assert (step - 8) * group * keys <= max(2**19, 64 * keys)


@pytest.mark.parametrize(
    ("rows", "keys", "head_dim", "dtype"),
    [(8, 64, 64, torch.float32), (512, 512, 20, torch.float32), (512, 512, 64, torch.float16)],
    ids=["few scores", "an odd head", "fp16"],
)
def test_what_products_are_not_for_is_left_to_fused_attention(
    rows: int, keys: int, head_dim: int, dtype: torch.dtype
) -> None:
    query, held, _ = operands(rows, keys, 2, 1, head_dim, dtype)
    assert not OneDNNAttention().pays(query, held)


def test_large_runs_are_computed_by_products_where_the_cpu_has_them() -> None:
    query, keys, _ = operands(300, 300, 2, 1, 64, torch.float32)
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    assert OneDNNAttention().pays(query, keys) == (wide and torch.float32 in ABLE)
