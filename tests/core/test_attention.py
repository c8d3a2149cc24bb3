"""Attention backends: the reference against a dense statement, every other one against the reference."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.attention.reference import TorchReference
from diffulex_core.context import ForwardContext
from diffulex_core.kv_store import KVStore, page_bytes
from diffulex_core.protocols import AttentionBackend
from diffulex_core.types import AttentionBatch, KVGeometry
from tests.core.forward import CPU, Rows, attention_batch, slot_mapping

BACKENDS: list[AttentionBackend] = [TorchReference(), TorchCPU()]
IDS = ["torch_ref", "torch_cpu"]


@attrs.frozen(kw_only=True, eq=False)
class Problem:
    """A paged attention problem; `keys` and `values` hold each sequence's [slots, kv_heads, head_dim] in order.

    Scores are multiplied by `scale`, by default `head_dim ** -0.5`.
    """

    heads: int
    page_size: int
    num_pages: int
    sequences: tuple[Rows, ...]
    queries: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    fill: float = 0.0
    scale: float | None = None

    @property
    def factor(self) -> float:
        return float(self.queries[0].shape[-1] ** -0.5) if self.scale is None else self.scale

    @property
    def batch(self) -> AttentionBatch:
        return attention_batch(self.sequences, self.page_size)

    def paged(self, contents: Sequence[Tensor]) -> Tensor:
        """Pages with each sequence's contents in its own pages and `fill` everywhere else."""
        stored = torch.full((self.num_pages, self.page_size, *contents[0].shape[1:]), self.fill)
        for rows, tensor in zip(self.sequences, contents, strict=True):
            slots = torch.arange(len(tensor))
            stored[torch.tensor(rows.table)[slots // self.page_size], slots % self.page_size] = tensor
        return stored

    def attend(self, backend: AttentionBackend) -> Tensor:
        query = torch.cat(self.queries)
        return backend.attend(query, self.paged(self.keys), self.paged(self.values), self.batch, self.factor)


@st.composite
def problems(draw: st.DrawFn, fill: float = 0.0) -> Problem:
    kv_heads, group = draw(st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 2), (2, 3), (3, 7)]))
    head_dim, page_size = draw(st.sampled_from([2, 5, 8, 16])), draw(st.sampled_from([1, 2, 4, 8]))
    block = draw(st.sampled_from([1, 2, 4]))
    window = draw(st.sampled_from([None, None, 1, 3, 6]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    spans = draw(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9)), min_size=1, max_size=4))
    needed = [-(-(start + count) // page_size) for start, count in spans]
    num_pages = sum(needed) + draw(st.integers(1, 3))
    free = torch.randperm(num_pages, generator=generator).tolist()
    sequences, queries, keys, values = [], [], [], []
    for (start, count), size in zip(spans, needed, strict=True):
        total = start + count
        end = [min((position // block + 1) * block, total) for position in range(start, total)]
        first = [0 if window is None else max(0, position - window + 1) for position in range(start, total)]
        if draw(st.booleans()) and draw(st.booleans()):
            end = [0] * count
            first = [0] * count
        table = [free.pop() for _ in range(size)]
        sequences.append(Rows(tokens=[0] * count, start=start, key_start=first, key_end=end, table=table))
        queries.append(torch.randn(count, kv_heads * group, head_dim, generator=generator) * 2)
        keys.append(torch.randn(total, kv_heads, head_dim, generator=generator) * 2)
        values.append(torch.randn(total, kv_heads, head_dim, generator=generator))
    return Problem(
        heads=kv_heads * group, page_size=page_size, num_pages=num_pages, sequences=tuple(sequences),
        queries=tuple(queries), keys=tuple(keys), values=tuple(values), fill=fill,
    )  # fmt: skip


def dense(problem: Problem) -> Tensor:
    """What attention means, in fp64 over unpaged keys, one head and one row after the other."""
    out = []
    for rows, query, keys, values in zip(problem.sequences, problem.queries, problem.keys, problem.values, strict=True):
        q, k, v = (tensor.double().numpy() for tensor in (query, keys, values))
        group = q.shape[1] // k.shape[1]
        for row, (first, end) in enumerate(zip(rows.first_keys, rows.key_end, strict=True)):
            for head in range(q.shape[1]):
                scores = k[first:end, head // group] @ q[row, head] * problem.factor
                weights = np.exp(scores - scores.max(initial=-np.inf)) if end > first else scores
                out.append((weights / max(weights.sum(), 1e-300)) @ v[first:end, head // group])
    return torch.tensor(np.array(out)).view(-1, problem.heads, problem.queries[0].shape[-1]).float()


@pytest.mark.parametrize("backend", BACKENDS, ids=IDS)
@settings(max_examples=40)
@given(problem=problems())
def test_every_backend_computes_softmax_attention_over_each_rows_interval(
    backend: AttentionBackend, problem: Problem
) -> None:
    torch.testing.assert_close(problem.attend(backend), dense(problem), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS, ids=IDS)
def test_wide_heads_unscaled_scores_and_windows_that_differ_from_row_to_row_are_served(
    backend: AttentionBackend,
) -> None:
    """The layers of DiffusionGemma: causal rows in a sliding window, then a canvas that shares one start."""
    generator = torch.Generator().manual_seed(4)
    rows = Rows(
        tokens=[0] * 7,
        start=6,
        key_start=[4, 5, 6, 7, 8, 8, 8],
        key_end=[7, 8, 9, 10, 13, 13, 13],
        table=[3, 0, 2, 4],
    )
    query, keys, values = (
        torch.randn(count, heads, 512, generator=generator) for count, heads in ((7, 8), (13, 2), (13, 2))
    )
    problem = Problem(
        heads=8, page_size=4, num_pages=5, sequences=(rows,), queries=(query / 512**0.5,), keys=(keys,),
        values=(values,), fill=float("nan"), scale=1.0,
    )  # fmt: skip
    torch.testing.assert_close(problem.attend(backend), dense(problem), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS, ids=IDS)
@settings(max_examples=40)
@given(problem=problems(fill=float("nan")))
def test_nan_in_pages_and_slots_that_no_row_sees_changes_no_bit(backend: AttentionBackend, problem: Problem) -> None:
    clean = attrs.evolve(problem, fill=0.0).attend(backend)
    assert torch.isfinite(clean).all()
    assert torch.equal(problem.attend(backend), clean)


@pytest.mark.parametrize("backend", BACKENDS, ids=IDS)
def test_nan_in_a_sequences_own_slots_beyond_the_interval_changes_no_bit(backend: AttentionBackend) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = Rows(tokens=[0] * 2, start=4, key_start=[3, 3], key_end=[6, 6], table=[2, 0, 1])
    contents = [torch.randn(12, 2, 8, generator=generator) for _ in range(2)]
    problem = Problem(
        heads=4, page_size=4, num_pages=3, sequences=(rows,), queries=(torch.randn(2, 4, 8, generator=generator),),
        keys=(contents[0],), values=(contents[1],),
    )  # fmt: skip
    expected = problem.attend(backend)
    for tensor in contents:
        tensor[:3] = float("nan")
        tensor[6:] = float("nan")
    assert torch.isfinite(expected).all()
    assert torch.equal(problem.attend(backend), expected)


@pytest.mark.parametrize("backend", BACKENDS, ids=IDS)
@settings(max_examples=40)
@given(problem=problems(), seed=st.integers(0, 99))
def test_relabelled_pages_give_the_same_bits(backend: AttentionBackend, problem: Problem, seed: int) -> None:
    label = torch.randperm(problem.num_pages, generator=torch.Generator().manual_seed(seed)).tolist()
    moved = tuple(attrs.evolve(rows, table=[label[page] for page in rows.table]) for rows in problem.sequences)
    assert torch.equal(attrs.evolve(problem, sequences=moved).attend(backend), problem.attend(backend))


@pytest.mark.parametrize("backend", BACKENDS, ids=IDS)
@settings(max_examples=40)
@given(problem=problems(), page_size=st.integers(1, 9))
def test_the_page_size_does_not_matter(backend: AttentionBackend, problem: Problem, page_size: int) -> None:
    counter = itertools.count()
    moved = tuple(
        attrs.evolve(rows, table=[next(counter) for _ in range(-(-len(keys) // page_size))])
        for rows, keys in zip(problem.sequences, problem.keys, strict=True)
    )
    other = attrs.evolve(problem, page_size=page_size, num_pages=next(counter), sequences=moved)
    torch.testing.assert_close(other.attend(backend), problem.attend(backend), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS, ids=IDS)
@settings(max_examples=40)
@given(problem=problems())
def test_the_bits_of_a_sequence_are_those_it_has_alone(backend: AttentionBackend, problem: Problem) -> None:
    together = problem.attend(backend).split([len(query) for query in problem.queries])
    for index, output in enumerate(together):
        one = slice(index, index + 1)
        alone = attrs.evolve(
            problem, sequences=problem.sequences[one], queries=problem.queries[one], keys=problem.keys[one],
            values=problem.values[one],
        )  # fmt: skip
        assert torch.equal(alone.attend(backend), output)


@pytest.mark.parametrize("backend", BACKENDS, ids=IDS)
def test_rows_without_keys_and_padding_rows_are_zero(backend: AttentionBackend) -> None:
    pages = torch.full((2, 4, 1, 8), float("nan"))
    rows = Rows(tokens=[0] * 3, key_end=[0, 0, 0], table=[1])
    batch = attention_batch([rows], 4, multiple=8)
    query = torch.randn(8, 2, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(backend.attend(query, pages, pages, batch, 1.0), torch.zeros(8, 2, 8))


@pytest.mark.parametrize("backend", BACKENDS, ids=IDS)
def test_half_precision_queries_get_half_precision_outputs_near_the_fp32_ones(backend: AttentionBackend) -> None:
    generator = torch.Generator().manual_seed(2)
    query, keys = torch.randn(6, 4, 16, generator=generator), torch.randn(2, 8, 2, 16, generator=generator)
    batch = attention_batch([Rows(tokens=[0] * 6, key_end=[13] * 6, table=[1, 0])], 8)
    exact = TorchReference().attend(query, keys, keys, batch, 0.25)
    for pages in (keys, keys.bfloat16()):
        out = backend.attend(query.bfloat16(), pages, pages, batch, 0.25)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), exact, atol=3e-2, rtol=3e-2)


@given(
    page_size=st.sampled_from([1, 4, 8]),
    starts=st.lists(st.integers(0, 10), min_size=1, max_size=3),
    stored=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_a_forward_writes_exactly_the_slots_it_is_given(page_size: int, starts: list[int], stored: list[bool]) -> None:
    counter = itertools.count(1)
    sequences = [
        Rows(
            tokens=[0] * 3,
            start=start,
            key_end=[start + 3] * 3,
            table=[next(counter) for _ in range(-(-(start + 3) // page_size))],
            store=store,
        )
        for start, store in zip(starts, stored, strict=False)
    ]
    geometry = (KVGeometry(num_heads=2, num_kv_heads=1, head_dim=4),) * 2
    store = KVStore.allocate(geometry, next(counter) + 1, page_size, torch.float32, CPU)
    before = [tensor.clone() for tensor in (*store.key_pages, *store.value_pages)]
    slots = slot_mapping(sequences, page_size, multiple=8)
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(len(slots), heads, 4, generator=generator) for heads in (2, 1, 1))
    ctx = ForwardContext(
        slots=slots,
        key_pages=store.key_pages,
        value_pages=store.value_pages,
        batches=(attention_batch(sequences, page_size, multiple=8),),
        backend=TorchCPU(),
    )

    ctx.attend(1, 0, query, key, value, 0.5)

    for expected, rows in ((before[1], key), (before[3], value)):
        for slot, row in zip(slots.tolist(), rows, strict=True):
            if slot >= 0:
                expected[slot // page_size, slot % page_size] = row
    for expected, tensor in zip(before, (*store.key_pages, *store.value_pages), strict=True):
        assert torch.equal(tensor, expected)


def test_a_row_that_stores_nothing_still_reads_the_stored_key() -> None:
    geometry = (KVGeometry(num_heads=1, num_kv_heads=1, head_dim=4),)
    store = KVStore.allocate(geometry, 1, 4, torch.float32, CPU)
    store.value_pages[0][0, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    rows = [Rows(tokens=[0], key_end=[1], table=[0], store=False)]
    ctx = ForwardContext(
        slots=slot_mapping(rows, 4),
        key_pages=store.key_pages,
        value_pages=store.value_pages,
        batches=(attention_batch(rows, 4),),
        backend=TorchCPU(),
    )
    own = torch.full((1, 1, 4), 9.0)
    assert ctx.attend(0, 0, own, own, own, 1.0).flatten().tolist() == [1.0, 2.0, 3.0, 4.0]


@given(
    pages=st.integers(1, 4),
    page_size=st.integers(1, 8),
    shapes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), min_size=1, max_size=3),
)
def test_a_store_takes_the_bytes_that_its_pages_are_said_to_take(
    pages: int, page_size: int, shapes: list[tuple[int, int]]
) -> None:
    geometry = [KVGeometry(num_heads=heads, num_kv_heads=heads, head_dim=width) for heads, width in shapes]
    for dtype in (torch.float32, torch.bfloat16):
        store = KVStore.allocate(geometry, pages, page_size, dtype, CPU)
        taken = sum(tensor.nbytes for tensor in (*store.key_pages, *store.value_pages))
        assert taken == pages * page_bytes(geometry, page_size, dtype)
        shapes_now = [tuple(tensor.shape) for tensor in store.value_pages]
        assert shapes_now == [(pages, page_size, heads, width) for heads, width in shapes]
