"""Forwards of a registered strategy on a scripted network: real requests, scheduler, pages, packing and sampler.

Only the network is missing. In its place a script says which tokens it would be sure of in each forward, so that the
same tokens are decided in the same forwards everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
import torch

from diffulex_core.blocks import BlockRequest
from diffulex_core.host import Host
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.packing import PackedStep, pack
from diffulex_core.pattern import AttentionPattern, IntArray
from diffulex_core.plugin import Capability, DecodingStrategy
from diffulex_core.protocols import Req
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling import PackedSampler
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.types import BoolArray, Canvas, Decision, StepOutput, StepPlan
from diffulex_core.worker import component

MASK, EOS, VOCABULARY = 30, 31, 32
"""Ids below `MASK` are letters."""
SURE, UNSURE = 20.0, 1.0
"""Logits of the scripted tokens; all others are 0."""


@attrs.frozen(kw_only=True)
class Example:
    """A strategy at work on one short prompt.

    Attributes:
        strategy: its registered name.
        script: for each forward the answer as the network would write it; a dot is a position that it is unsure of.
        shifted: the family's row i predicts position i + 1.
        options: arguments of the strategy's `config_cls`.
        params: arguments of the request's `SamplingParams`.
        windows: sliding-window width of each layer kind.
    """

    strategy: str
    script: tuple[str, ...]
    prompt_len: int = 6
    block_size: int = 4
    buffer_size: int = 2
    mode: str = "naive"
    shifted: bool = False
    options: Mapping[str, Any] = attrs.field(factory=dict)
    params: Mapping[str, Any] = attrs.field(factory=dict)
    windows: tuple[int | None, ...] = (None,)


@attrs.frozen(kw_only=True, eq=False)
class Fed:
    """One sequence of a forward.

    Attributes:
        kinds: what each key is: "prompt", "answer" (decided), "mask", "noise" (not decided, without a mask token), or
            "kept" (of the sparse cache, for which keys have slots and no positions).
        tokens: [n] ids of the keys, in the order of their slots: those that are fed, and those in the pages.
        rows: [m] slots of the rows that are fed; but for the sparse cache, slots are positions.
        key_start, key_end: [kinds, m] the keys that each row sees in each kind of layer.
        asked: [m] bool: the row's logits are looked at.
        final: [m] bool: the row's keys and values are stored for good.
        stored: K/V below this position were final before the forward.
    """

    kinds: tuple[str, ...]
    tokens: IntArray
    rows: IntArray
    key_start: IntArray
    key_end: IntArray
    asked: BoolArray
    final: BoolArray
    stored: int


@attrs.frozen(kw_only=True, eq=False)
class Forward:
    """One forward of the example.

    Attributes:
        sequences: what it feeds; two sequences where there is guidance.
        canvas: the answer after it.
        rows: rows that it feeds.
    """

    sequences: tuple[Fed, ...]
    canvas: Canvas
    rows: int


def forwards(example: Example, host: Host) -> Iterator[Forward]:
    """The example's forwards, as many as its script has lines."""
    entry = host.strategies.entry(example.strategy)
    strategy = entry.descriptor.in_mode(example.mode)
    size = example.block_size * (example.buffer_size if strategy.sub_blocks else 1)
    pattern: AttentionPattern = host.load(strategy.pattern, provenance=entry.provenance)(size)
    request = _request(example, strategy, pattern, host)
    cache = component(host, "kv_cache", strategy.kv_cache, PagedKVCache)(
        num_pages=32, page_size=size, pattern=pattern, prefix_caching=False
    )
    scheduler = component(host, "scheduler", strategy.scheduler, ContinuousScheduler)(
        cache, max_num_reqs=1, max_num_batched_tokens=256, block_size=size
    )
    masks = Capability.MASK_TOKEN in strategy.requires
    sampler = component(host, "sampler", strategy.sampler, PackedSampler)(
        vocab_size=VOCABULARY, forbidden=frozenset({MASK}) if masks else frozenset()
    )
    scheduler.add(request)
    stored = 0
    for line in example.script:
        plan: StepPlan | None = scheduler.schedule()
        assert plan is not None, f"{example.strategy}: the request ended before its script"
        step = pack(plan, pattern, example.windows, size)
        sequences = _fed(plan, step, request, stored, masks)
        logits = torch.from_numpy(_logits(step, line, example.prompt_len))
        decisions = sampler.sample(logits, step.sampling) if len(logits) else [_nothing()]
        scheduler.update(plan, StepOutput(decisions=tuple(decisions), head_rows=len(logits)))
        stored = max(stored, plan.windows[0].span.store_until)
        yield Forward(sequences=sequences, canvas=request.canvas, rows=plan.rows)


def _request(example: Example, strategy: DecodingStrategy, pattern: AttentionPattern, host: Host) -> Req:
    provenance = host.strategies.entry(example.strategy).provenance
    options = None
    if strategy.config_cls is not None:
        options = host.load(strategy.config_cls, provenance=provenance)(**example.options)
    factory = BlockRequest if strategy.req is None else host.load(strategy.req, provenance=provenance)
    request: Req = factory(
        request_id=0,
        prompt=np.arange(example.prompt_len),
        params=SamplingParams(temperature=0, seed=1, **{"max_tokens": 64, **example.params}),
        context=ReqContext(
            pattern=pattern,
            buffer_size=example.buffer_size,
            mask_token_id=MASK,
            eos_token_ids=frozenset({EOS}),
            max_model_len=256,
            thresholds=DecodingThresholds(),
            shifted=example.shifted,
            options=options,
            vocab_size=VOCABULARY,
        ),
    )
    return request


def _logits(step: PackedStep, line: str, prompt_len: int) -> np.typing.NDArray[np.float32]:
    """[rows, vocabulary]: sure of the letters that the line gives, unsure everywhere else."""
    positions = step.sampling.positions
    logits = np.zeros((len(positions), VOCABULARY), dtype=np.float32)
    for row, position in enumerate((positions - prompt_len).tolist()):
        letter = line[position] if position < len(line) else "."
        token = position % 26 if letter == "." else ord(letter) - ord("a")
        logits[row, token] = UNSURE if letter == "." else SURE
    return logits


def _fed(plan: StepPlan, step: PackedStep, request: Req, stored: int, masks: bool) -> tuple[Fed, ...]:
    [window] = plan.windows
    count = len(window.span.tokens)
    asked = np.zeros(len(step.layout.positions), dtype=np.bool_)
    asked[step.head_rows[step.head_rows >= 0]] = True
    asked[step.guided.rows] = True
    sequences = []
    for offset in range(0, window.span.rows, count):
        rows = slice(offset, offset + count)
        packed = window.span.packed or 0
        begin = window.span.start if window.span.packed is None else packed
        known = request.stored_tokens if window.span.packed is None else np.zeros(packed + count, dtype=np.int64)
        tokens = np.resize(known, max(len(known), begin + count))
        tokens[begin : begin + count] = step.input_ids[rows]
        provisional = begin + np.flatnonzero(~step.layout.final[rows])
        sequences.append(
            Fed(
                kinds=tuple(
                    "kept"
                    if position < packed
                    else "mask"
                    if masks and token == MASK
                    else "prompt"
                    if position - begin + window.span.start < window.prompt_len
                    else "answer"
                    if masks or position not in provisional
                    else "noise"
                    for position, token in enumerate(tokens.tolist())
                ),
                tokens=tokens,
                rows=begin + np.arange(count),
                key_start=np.stack([kind.key_start[rows] for kind in step.layout.visibility]),
                key_end=np.stack([kind.key_end[rows] for kind in step.layout.visibility]),
                asked=asked[rows],
                final=step.layout.final[rows],
                stored=stored,
            )
        )
    return tuple(sequences)


def _nothing() -> Decision:
    """The answer to a forward that asks nothing."""
    empty = np.empty(0, dtype=np.int64)
    return Decision(positions=empty, tokens=empty, confidence=empty.astype(np.float32), accepted=empty.astype(np.bool_))
