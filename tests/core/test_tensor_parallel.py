"""A network that several ranks share computes what one process computes: every family, and every way to divide."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.nn import functional

from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.context import BuildContext, ForwardContext
from diffulex_core.distributed import ALONE, Communicator, Seat
from diffulex_core.errors import ConfigError
from diffulex_core.kv_store import KVStore
from diffulex_core.layers import DecoderSpec, build_decoder
from diffulex_core.layers.decoder import Decoder
from diffulex_core.layers.linear import Embedding, RowLinear, VocabHead
from diffulex_core.layers.moe.spec import MoESpec
from diffulex_core.protocols import DiffusionModel
from diffulex_core.sampling import PackedSampler
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.thread_group import ThreadGroup, together
from diffulex_core.types import Decision
from diffulex_core.weights import dummy_weights
from tests.core.forward import CPU, Rows, all_visible, attention_batch, block_causal, pages, slot_mapping
from tests.core.sampler_oracle import Asked, Group, batch_of
from tests.families.layouts import layouts, write
from tests.families.subjects import SUBJECTS, Subject

BLOCK, PAGE, LENGTH = 4, 4, 14
TOLERANCE = 1e-4
SIZES = (2, 4, 8)


def forward(model: DiffusionModel, rows: Rows, store: KVStore, *, final: bool = True) -> Tensor:
    """One forward of one sequence: the logits [rows, columns] of this rank."""
    padding = [0] * (-len(rows.tokens) % 8)
    positions = list(range(rows.start, rows.start + len(rows.tokens)))
    context = ForwardContext(
        slots=slot_mapping([rows], PAGE, multiple=8),
        key_pages=store.key_pages,
        value_pages=store.value_pages,
        batches=(attention_batch([rows], PAGE, multiple=8),) * len(model.windows),
        backend=TorchCPU(),
        final=torch.tensor([final] * len(positions) + [True] * len(padding)),
    )
    with torch.inference_mode():
        hidden = model(torch.tensor([*rows.tokens, *padding]), torch.tensor(positions + padding), context)
        return model.logits(hidden)[: len(positions)]


def passes(model: DiffusionModel) -> list[Tensor]:
    """Logits with all positions visible, block-causally, and block by block over cached K/V.

    In the last of them a block is fed with other tokens first, as provisional rows, which is how it is denoised.
    """
    ids = torch.randint(0, model.vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(LENGTH))
    table = list(reversed(range(-(-LENGTH // PAGE))))
    logits = []
    for key_end in (all_visible(LENGTH), block_causal(LENGTH, BLOCK)):
        rows = Rows(tokens=ids.tolist(), key_end=key_end, table=table)
        logits.append(forward(model, rows, pages(model.kv_geometry, len(table), PAGE)))
    store = pages(model.kv_geometry, len(table), PAGE, fill=float("nan"))
    for start in range(0, LENGTH, BLOCK):
        end = min(start + BLOCK, LENGTH)
        for final, tokens in ((False, (ids[start:end] + 7) % model.vocab_size), (True, ids[start:end])):
            rows = Rows(tokens=tokens.tolist(), start=start, key_end=all_visible(end)[start:], table=table)
            logits.append(forward(model, rows, store, final=final))
    return logits


def check_equal(build: Callable[[Communicator], DiffusionModel], size: int) -> None:
    """The columns of all ranks, put together, are what one process computes."""
    alone = passes(build(ALONE))
    group = ThreadGroup(size)
    shares = group.run(lambda tp: passes(build(tp)))
    vocab = alone[0].shape[1]
    for expected, *parts in zip(alone, *shares, strict=True):
        assert {part.shape[1] for part in parts} == {-(-vocab // size)}
        assert expected.std() > 0.1, "these logits could not tell networks apart"
        torch.testing.assert_close(torch.cat(parts, dim=1)[:, :vocab], expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert {each.kind for each in group.log} == {"sum"}


# Families


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Matrices that keep the scale of their inputs, and vectors and scalars near one, so that none is an identity."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        if len(shape) > 1
        else 1 + 0.3 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def write_random(subject: Subject, folder: Path) -> None:
    """A checkpoint in the family's own layout."""
    layout = next(layouts(subject))
    write(folder, random_tensors({name: place.shape for name, place in layout.places.items()}, seed=1))


def fits(subject: Subject, size: int) -> bool:
    try:
        subject.network(Seat(0, size))
    except ConfigError:
        return False
    return True


def with_more_heads(subjects: Sequence[Subject]) -> Iterator[Subject]:
    """The families again with 16 query heads over their few key/value heads, for more ranks than those are."""
    heads, widths = ("num_attention_heads", "n_heads"), ("intermediate_size", "mlp_hidden_size")
    for subject in subjects:
        changes: dict[str, Any] = {key: 16 for key in heads if key in subject.config}
        changes |= {key: 48 for key in widths if key in subject.config}
        config = {**subject.config, **changes}
        if changes and not subject.check(config):
            yield attrs.evolve(subject, name=f"{subject.name} with 16 heads", config=config)


CASES = [
    pytest.param(subject, size, id=f"{subject}-{size}")
    for subject in (*SUBJECTS, *with_more_heads(SUBJECTS))
    for size in SIZES
    if fits(subject, size)
]


def test_every_family_is_compared_on_two_ranks_and_some_on_eight() -> None:
    compared = {(str(subject), size) for subject, size in (cast("Any", case).values for case in CASES)}
    assert {(str(subject), 2) for subject in SUBJECTS} <= compared
    assert len({name for name, size in compared if size == 8}) >= 4


@pytest.mark.parametrize(("subject", "size"), CASES)
def test_a_familys_logits_are_those_of_one_process(subject: Subject, size: int, tmp_path: Path) -> None:
    write_random(subject, tmp_path)
    check_equal(lambda tp: cast("DiffusionModel", subject.loaded(tmp_path, tp)), size)


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_a_family_and_the_sampler_decide_alike_on_two_ranks(subject: Subject, tmp_path: Path) -> None:
    """Ranks hand their columns to the sampler as they are: the ids that it finds are those of the vocabulary."""
    write_random(subject, tmp_path)
    asked = [
        Asked(groups=[Group(logits=[[0.0]] * LENGTH, threshold=0.1, force_one=True)], params=params)
        for params in (
            SamplingParams(temperature=0),
            SamplingParams(temperature=0, confidence="margin", top_k=5),
            SamplingParams(temperature=0.8, seed=3, top_p=0.9),
        )
    ]

    def decide(tp: Communicator) -> list[Decision]:
        model = cast("DiffusionModel", subject.loaded(tmp_path, tp))
        logits = passes(model)[1].repeat(len(asked), 1) * 6
        forbidden = frozenset({model.vocab_size - 2})
        sampler = PackedSampler(vocab_size=model.vocab_size - 1, forbidden=forbidden, tp=tp)
        return list(sampler.sample(logits, batch_of(asked)))

    expected = decide(ALONE)
    for decisions in together(2, decide):
        for decision, other in zip(decisions, expected, strict=True):
            assert decision.tokens.tolist() == other.tokens.tolist()
            assert decision.accepted.tolist() == other.accepted.tolist()
            np.testing.assert_allclose(decision.confidence, other.confidence, atol=1e-3)


# The generic decoder and its parts

SPEC = DecoderSpec(
    vocab_size=61, hidden_size=32, num_layers=2, num_heads=16, num_kv_heads=8, ffn_size=48, rope_theta=1e4, head_dim=4
)
MOE = MoESpec(
    num_experts=8, experts_per_token=3, expert_size=20, router="sigmoid", num_groups=4, groups_kept=2,
    renormalize=True, scale=2.5, correction_bias=True, shared_size=24,
)  # fmt: skip
BIASES = {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "head_bias": True}


def decoder(spec: DecoderSpec, tp: Communicator) -> Decoder:
    model = build_decoder(spec, BuildContext(dtype=torch.float32, device=torch.device("meta"), tp=tp))
    assert isinstance(model, Decoder)
    dummy_weights(model, device=CPU)
    return model


@pytest.mark.parametrize("size", [2, 3, 4, 8])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_kv_heads": 2},
        {"num_kv_heads": 1},
        {"num_kv_heads": 16},
        BIASES,
        {"tie_embeddings": True, "qk_norm": True, "rope_fraction": 0.5},
        {"moe": MOE, "sparse_layers": [1]},
    ],
    ids=["few key/value heads", "one key/value head", "plain heads", "biases", "tied", "experts"],
)
def test_a_decoders_logits_are_those_of_one_process(changes: dict[str, Any], size: int) -> None:
    """Two key/value heads for four ranks: neighbouring ranks share one, and each query head reads its own."""
    spec = attrs.evolve(SPEC, **changes)
    if size == 3:
        with pytest.raises(ConfigError, match="tensor_parallel_size 3 does not divide"):
            decoder(spec, Seat(0, size))
        return
    check_equal(lambda tp: decoder(spec, tp), size)


@pytest.mark.parametrize("changes", [BIASES, {"moe": MOE, "sparse_layers": [0, 1]}], ids=["dense", "experts"])
def test_a_forward_sums_once_for_the_embedding_and_twice_for_each_layer(changes: dict[str, Any]) -> None:
    """Routed and shared experts are added before they are summed over the ranks."""
    group = ThreadGroup(4)
    rows = Rows(tokens=[1, 2, 3], key_end=all_visible(3), table=[0])

    def run(tp: Communicator) -> Tensor:
        model = decoder(attrs.evolve(SPEC, **changes), tp)
        return forward(model, rows, pages(model.kv_geometry, 1, PAGE))

    group.run(run)
    assert [(each.kind, each.shape) for each in group.log] == [("sum", (8, SPEC.hidden_size))] * (1 + 2 * 2)


@given(st.integers(1, 40), st.integers(1, 8), st.booleans())
@settings(deadline=None)
def test_a_divided_vocabulary_embeds_and_predicts_every_token_once(vocab: int, size: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(vocab)
    table, offset = torch.randn(vocab, 6, generator=generator), torch.randn(vocab, generator=generator)

    def run(tp: Communicator) -> tuple[Tensor, Tensor]:
        ctx = BuildContext(dtype=torch.float32, device=CPU, tp=tp)
        embedding, head = Embedding(ctx, vocab, 6), VocabHead(ctx, 6, vocab, bias=bias)
        share(embedding, "weight", table)
        share(head, "weight", table)
        if bias:
            share(head, "bias", offset)
        hidden = embedding(torch.arange(vocab))
        return hidden, head(hidden)

    answers = together(size, run)
    assert all(torch.equal(hidden, table) for hidden, _ in answers)
    logits = torch.cat([logits for _, logits in answers], dim=1)[:, :vocab]
    torch.testing.assert_close(logits, functional.linear(table, table, offset if bias else None))


@pytest.mark.parametrize("method", [RowLinear.forward, lambda layer, x: layer.tp.sum(layer.addend(x))])
def test_a_row_linears_bias_counts_once(method: Callable[[RowLinear, Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(shape, generator=generator) for shape in ((5, 12), (5,), (7, 12)))

    def run(tp: Communicator) -> Tensor:
        layer = RowLinear(BuildContext(dtype=torch.float32, device=CPU, tp=tp), 12, 5, bias=True)
        share(layer, "weight", weight)
        share(layer, "bias", bias)
        return method(layer, x[:, layer.held.start : layer.held.start + layer.held.length])

    for out in together(4, run):
        torch.testing.assert_close(out, functional.linear(x, weight, bias))


def share(layer: nn.Module, parameter: str, whole: Tensor) -> None:
    """Fill a parameter with its part of a tensor, zeros where it is longer, as the loader does."""
    assert isinstance(layer, (Embedding, VocabHead, RowLinear))
    part = layer.parts(parameter)[None]
    part.view.zero_()
    [piece] = part.pieces
    held = whole.narrow(part.dim, piece.start, piece.length)
    part.view.narrow(part.dim, 0, piece.length).copy_(held)


# The group of threads itself


def test_results_are_those_of_the_rank_order_and_belong_to_their_rank() -> None:
    def run(tp: Communicator) -> tuple[list[float], list[float], list[list[float]]]:
        mine = torch.tensor([float(tp.rank), -float(tp.rank)])
        gathered = tp.gather(mine)
        answer = gathered.tolist()
        gathered.zero_()
        return tp.sum(mine.clone()).tolist(), tp.max(mine.clone()).tolist(), answer

    for total, most, gathered in together(3, run):
        assert (total, most) == ([3.0, -3.0], [2.0, 0.0])
        assert gathered == [[0.0, 0.0], [1.0, -1.0], [2.0, -2.0]]


def test_a_sum_adds_in_rank_order_every_time() -> None:
    numbers = [1e8, 1.0, -1e8, 0.5]
    for _ in range(20):
        assert {float(each) for each in together(4, lambda tp: tp.sum(torch.tensor(numbers[tp.rank])))} == {0.5}


def test_a_rank_that_raises_ends_the_others_and_its_error_is_told() -> None:
    def run(tp: Communicator) -> None:
        if tp.rank == 2:
            raise LookupError("rank 2 has had enough")
        tp.sum(torch.ones(1))

    with pytest.raises(LookupError, match="rank 2 has had enough"):
        ThreadGroup(4, seconds=60).run(run)


@pytest.mark.parametrize(
    "other",
    [lambda tp: tp.max(torch.ones(2)), lambda tp: tp.sum(torch.ones(3)), lambda tp: None],
    ids=["kind", "shape", "end"],
)
def test_ranks_that_do_different_things_are_an_error(other: Callable[[Communicator], object]) -> None:
    with pytest.raises(AssertionError, match="all together"):
        ThreadGroup(2, seconds=60).run(lambda tp: other(tp) if tp.rank else tp.sum(torch.ones(2)))


def test_a_rank_that_does_not_come_in_time_is_not_waited_for() -> None:
    late = threading.Event()

    def run(tp: Communicator) -> None:
        try:
            if tp.rank:
                late.wait(20)
            tp.sum(torch.ones(1))
        finally:
            late.set()

    with pytest.raises(threading.BrokenBarrierError):
        ThreadGroup(2, seconds=0.1).run(run)
