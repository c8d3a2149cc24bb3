"""The runner on a real network: a row's logits depend on its own sequence only, down to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file
from torch import Tensor

from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.checkpoint import read_json_config
from diffulex_core.context import BuildContext
from diffulex_core.kv_store import KVStore
from diffulex_core.pattern import AttentionPattern, BlockCausal, FullPrefix, Phase
from diffulex_core.runner import EagerRunner
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import AttentionBatch, Decision, SampleGroup, SamplingBatch, Span, StepPlan, Window
from diffulex_core.weights import load_weights
from diffulex_llada.model import build
from diffulex_llada.oracle import hf_reference
from diffulex_llada.weights import WEIGHTS
from tests.integration.engines import CHECKPOINT, MASK, prompt

BLOCK = 8
CPU = torch.device("cpu")
CONFIG = read_json_config(CHECKPOINT)
NETWORK = build(CONFIG, BuildContext(dtype=torch.float32, device=CPU))
load_weights(NETWORK, WEIGHTS, CHECKPOINT, CONFIG, dtype=torch.float32, device=CPU, progress=False)
ORACLE = hf_reference(CONFIG, load_file(CHECKPOINT / "model.safetensors"))


@attrs.define
class Recorder:
    """A sampler that keeps the logits it is given and decides nothing."""

    logits: Tensor = attrs.field(factory=lambda: torch.empty(0))

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        self.logits = logits.clone()
        nothing = np.empty(0, dtype=np.int64)
        return [
            Decision(positions=nothing, tokens=nothing, confidence=nothing.astype(float), accepted=nothing.astype(bool))
            for _ in batch.windows
        ]


@attrs.define
class Watching:
    """The CPU's attention, which keeps what it is told of visibility."""

    batches: list[AttentionBatch] = attrs.field(factory=list)
    _attention: TorchCPU = attrs.field(factory=TorchCPU)

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        self.batches.append(batch)
        return self._attention.attend(query, key_pages, value_pages, batch, scale)


class Bench:
    """A runner over fresh pages, every one of them filled with NaN before use."""

    def __init__(self, pattern: AttentionPattern, page_size: int = 16) -> None:
        self.recorder, self.backend = Recorder(), Watching()
        self.store = store = KVStore.allocate(NETWORK.kv_geometry, 96, page_size, torch.float32, CPU)
        for pages in (*store.key_pages, *store.value_pages):
            pages.fill_(torch.nan)
        self.runner = EagerRunner(
            model=NETWORK,
            sampler=self.recorder,
            pattern=pattern,
            backend=self.backend,
            kv_store=store,
            page_size=page_size,
            device=CPU,
        )

    def run(self, *windows: Window) -> list[Tensor]:
        """Logits of each window's sampled rows."""
        self.runner.execute(StepPlan(step=0, windows=windows))
        sizes = [sum(len(group.rows) for group in window.span.groups) for window in windows]
        return list(self.recorder.logits.split(sizes)) if sum(sizes) else [torch.empty(0)] * len(windows)


def window(
    tokens: Sequence[int],
    start: int,
    pages: Sequence[int],
    *,
    prompt_len: int,
    phase: Phase = Phase.DECODE,
    sampled: bool = True,
    shift: int = 0,
    keep: int | None = None,
    store_from: int = 0,
    request_id: int = 0,
) -> Window:
    """A window whose rows are all sampled, or none of them; with a shift of 1, from the row before each."""
    at = np.arange(len(tokens))
    group = SampleGroup(block=0, positions=at + start, rows=at - shift, accept_threshold=1.0, force_one=False)
    span = Span(
        start=start,
        tokens=np.array(tokens),
        catch_up=0,
        store_until=start,
        phase=phase,
        groups=(group,) if sampled else (),
        advances=True,
        keep=keep,
        store_from=store_from,
    )
    return Window(
        request_id=request_id,
        span=span,
        prompt_len=prompt_len,
        page_table=np.array(pages),
        params=SamplingParams(temperature=0.0),
        draw=0,
    )


def sequence(blocks: int, salt: int = 0) -> list[int]:
    return [*prompt(blocks * BLOCK - 5, salt), *[MASK] * 5]


def test_what_rows_see_is_placed_once_for_all_steps_that_feed_the_same_rows() -> None:
    tokens, others = sequence(2), sequence(2, salt=3)
    bench, pattern = Bench(BlockCausal(block_size=BLOCK)), BlockCausal(block_size=BLOCK)
    steps = [
        window(tokens, 0, [5], prompt_len=11),
        window(others, 0, [5], prompt_len=11),
        window(others, 0, [6], prompt_len=11),
        window(tokens, 0, [5], prompt_len=11),
    ]
    placed = []
    for step in steps:
        [logits] = bench.run(step)
        [alone] = Bench(pattern).run(step)
        assert torch.equal(logits, alone)
        placed.append(bench.backend.batches[-1])
    assert [first is second for first, second in pairwise(placed)] == [True, False, False]


@settings(max_examples=20, deadline=None)
@given(mates=st.lists(st.integers(1, 6), max_size=5))
def test_logits_are_the_same_bits_alone_and_in_any_batch(mates: list[int]) -> None:
    own = window(sequence(3), 0, range(2), prompt_len=19)
    [alone] = Bench(BlockCausal(block_size=BLOCK)).run(own)
    others = [
        window(sequence(blocks, salt + 1), 0, range(2 + 4 * salt, 6 + 4 * salt), prompt_len=blocks * BLOCK - 5)
        for salt, blocks in enumerate(mates)
    ]
    place = len(others) // 2
    together = Bench(BlockCausal(block_size=BLOCK)).run(*others[:place], own, *others[place:])
    assert torch.equal(together[place], alone)


@settings(max_examples=20, deadline=None)
@given(before=st.lists(st.integers(1, 4), max_size=5), after=st.lists(st.integers(1, 4), max_size=5))
def test_rows_carried_over_are_the_same_bits_alone_and_in_any_batch(before: list[int], after: list[int]) -> None:
    """A request stores three blocks in one step; in the next one a block begins with the row before it."""
    [alone, found] = [_carried(company) for company in (([], []), (before, after))]
    assert torch.equal(found, alone)
    whole = [*prompt(3 * BLOCK), *[MASK] * BLOCK]
    expected = oracle_logits(whole, [(at // BLOCK + 1) * BLOCK for at in range(len(whole))])[23:31]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def _carried(company: tuple[list[int], list[int]]) -> Tensor:
    """Logits of the second step's block, with other requests in both steps that keep and use rows as well.

    Args:
        company: the blocks that each of the others feeds in the first step and in the second.
    """
    bench = Bench(BlockCausal(block_size=BLOCK))
    first = window(prompt(3 * BLOCK), 0, range(2), prompt_len=24, sampled=False, keep=23, request_id=7)
    bench.run(*_around(first, [_other(place, blocks, 0) for place, blocks in enumerate(company[0])]))
    starts = [blocks * BLOCK for blocks in company[0]] + [0] * len(company[1])
    others = [_other(place, blocks, starts[place]) for place, blocks in enumerate(company[1])]
    second = window([MASK] * BLOCK, 24, range(2), prompt_len=24, shift=1, request_id=7)
    return bench.run(*_around(second, others))[len(others) // 2]


def _around(own: Window, others: list[Window]) -> list[Window]:
    middle = len(others) // 2
    return [*others[:middle], own, *others[middle:]]


def _other(place: int, blocks: int, start: int) -> Window:
    """A request that keeps its last row, and is sampled from the row that it kept once it has one."""
    return window(
        prompt(blocks * BLOCK, salt=place + 1),
        start,
        range(4 + 5 * place, 9 + 5 * place),
        prompt_len=start,
        shift=1,
        sampled=start > 0,
        keep=start + blocks * BLOCK - 1,
        request_id=20 + place,
    )


def test_a_row_fed_again_reads_its_page_and_writes_nothing() -> None:
    bench = Bench(BlockCausal(block_size=BLOCK))
    bench.run(window(prompt(2 * BLOCK), 0, range(1), prompt_len=16, sampled=False))
    before = [page[:1].clone() for page in (*bench.store.key_pages, *bench.store.value_pages)]
    again = window(
        [prompt(16)[-1], *[MASK] * BLOCK], 15, range(2), prompt_len=16, sampled=False, store_from=16, keep=15
    )
    bench.run(again)
    for page, was in zip((*bench.store.key_pages, *bench.store.value_pages), before, strict=True):
        assert torch.equal(page[:1], was)
    [found] = bench.run(window([MASK] * BLOCK, 16, range(2), prompt_len=16, shift=1))
    whole = [*prompt(16), *[MASK] * BLOCK]
    expected = oracle_logits(whole, [(at // BLOCK + 1) * BLOCK for at in range(len(whole))])[15:23]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_row_is_kept_until_a_plan_says_that_its_request_ended() -> None:
    bench = Bench(BlockCausal(block_size=BLOCK))
    use = window([MASK] * BLOCK, 8, range(1), prompt_len=8, shift=1)
    bench.run(window(prompt(8), 0, range(1), prompt_len=8, sampled=False, keep=7))
    [kept] = bench.run(use)
    for ended in ((3,), ()):
        bench.runner.execute(StepPlan(step=1, windows=(use,), ended=ended))
        assert torch.equal(bench.recorder.logits[: len(kept)], kept)
    with pytest.raises(KeyError):
        bench.runner.execute(StepPlan(step=2, windows=(use,), ended=(0,)))


@pytest.mark.parametrize("page_size", [8, 16, 32])
def test_pages_may_lie_anywhere_and_have_any_size(page_size: int) -> None:
    tokens = sequence(6)
    [expected] = Bench(BlockCausal(block_size=BLOCK)).run(window(tokens, 0, range(3), prompt_len=43))
    scattered = np.random.default_rng(1).permutation(20)[: -(-len(tokens) // page_size)]
    bench = Bench(BlockCausal(block_size=BLOCK), page_size=page_size)
    [found] = bench.run(window(tokens, 0, scattered.tolist(), prompt_len=43))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("cuts", [[1], [2, 4], [1, 2, 3, 4, 5]])
def test_a_block_causal_prefill_may_be_cut_at_block_boundaries(cuts: list[int]) -> None:
    tokens = sequence(6)
    [expected] = Bench(BlockCausal(block_size=BLOCK)).run(window(tokens, 0, range(3), prompt_len=43))
    bench = Bench(BlockCausal(block_size=BLOCK))
    bounds = [0, *[cut * BLOCK for cut in cuts], len(tokens)]
    pieces = [
        bench.run(window(tokens[begin:end], begin, range(3), prompt_len=43))[0] for begin, end in pairwise(bounds)
    ]
    torch.testing.assert_close(torch.cat(pieces), expected, atol=1e-5, rtol=1e-5)


def oracle_logits(tokens: Sequence[int], visible_until: Sequence[int]) -> Tensor:
    """Logits of the transformers network under an explicit mask: row i sees keys below `visible_until[i]`."""
    allowed = torch.arange(len(tokens))[None, :] < torch.tensor(visible_until)[:, None]
    with torch.inference_mode():
        out = ORACLE(
            input_ids=torch.tensor([list(tokens)]),
            attention_mask=torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None],
            position_ids=torch.arange(len(tokens))[None],
            use_cache=False,
        )
    return out.logits[0]


def test_the_first_forward_of_d2f_sees_what_the_full_prefix_mask_shows() -> None:
    tokens = [*prompt(19), *[MASK] * 13]
    [found] = Bench(FullPrefix(block_size=BLOCK)).run(window(tokens, 0, range(2), prompt_len=19, phase=Phase.PREFILL))
    until = [19 if at < 19 else (at // BLOCK + 1) * BLOCK for at in range(len(tokens))]
    expected = oracle_logits(tokens, until)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_cached_decoding_equals_a_full_recompute() -> None:
    bench = Bench(BlockCausal(block_size=BLOCK))
    tokens = prompt(24)
    bench.run(window(tokens, 0, range(4), prompt_len=24, sampled=False))
    for block in range(3):
        fed = [*tokens[24:], *[MASK] * BLOCK][-2 * BLOCK :] if block else [MASK] * BLOCK
        start = len(tokens) + BLOCK - len(fed)
        [found] = bench.run(window(fed, start, range(4), prompt_len=24))
        whole = [*tokens, *[MASK] * BLOCK]
        until = [(at // BLOCK + 1) * BLOCK for at in range(len(whole))]
        torch.testing.assert_close(found, oracle_logits(whole, until)[start:], atol=1e-4, rtol=1e-4)
        tokens = [*tokens, *prompt(BLOCK, salt=block + 7)]
