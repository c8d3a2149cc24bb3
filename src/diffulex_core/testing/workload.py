"""Requests to keep a scheduler busy with: core's block requests, over a few prompts that share prefixes."""

from __future__ import annotations

from typing import Protocol

import attrs
import numpy as np
from hypothesis import strategies as st

from diffulex_core.blocks import BlockRequest
from diffulex_core.canvas.pattern import FullCanvas
from diffulex_core.pattern import AttentionPattern, BlockCausal, FullPrefix, IntArray
from diffulex_core.protocols import Req
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from diffulex_core.testing.fakes.network import EOS, MASK, WORDS
from diffulex_core.testing.oracles.alone import Answer, answer_alone


@attrs.frozen(kw_only=True)
class Setting:
    """What the requests of one engine share; named as the configuration keys are."""

    block_size: int = 4
    buffer_size: int = 2
    full_prefix: bool = False
    max_model_len: int = 64
    add_block: float = 0.1
    semi_complete: float = 0.9
    accept: float = 0.9
    stability: float = 0.0
    always_force: bool = False
    shifted: bool = False
    whole_canvas: bool = False

    @property
    def pattern(self) -> AttentionPattern:
        """Block-causal; full-prefix where the prompt sees itself whole; or everything sees everything."""
        if self.whole_canvas:
            return FullCanvas(block_size=self.block_size)
        kind = FullPrefix if self.full_prefix else BlockCausal
        return kind(block_size=self.block_size)

    @property
    def context(self) -> ReqContext:
        """As an engine makes it."""
        return ReqContext(
            pattern=self.pattern,
            buffer_size=self.buffer_size,
            mask_token_id=MASK,
            eos_token_ids=frozenset({EOS}),
            max_model_len=self.max_model_len,
            thresholds=DecodingThresholds(
                add_block_threshold=self.add_block,
                semi_complete_threshold=self.semi_complete,
                accept_threshold=self.accept,
                token_stability_threshold=self.stability,
            ),
            shifted=self.shifted,
            force_rule="always" if self.always_force else "after_semi_complete",
        )


class Witness(Req, Protocol):
    """A request that notes how often it was told that its pages are gone."""

    losses: int


class Asked(Protocol):
    """What makes a request."""

    def make(self, setting: Setting, request_id: int) -> Witness:
        """The request, fresh."""
        ...


class BlockWitness(BlockRequest):
    """A block request that notes its losses."""

    losses: int = 0

    def preempted(self) -> None:
        """Take note of it."""
        self.losses += 1
        super().preempted()


class PrivateWitness(BlockWitness):
    """One whose K/V do not follow from its tokens, so that nothing of it may serve others."""

    @property
    def known_tokens(self) -> IntArray:
        """None."""
        return super().known_tokens[:0]


@attrs.frozen(kw_only=True)
class Ask:
    """One request; nothing of a private one may serve others."""

    prompt: tuple[int, ...]
    seed: int = 0
    max_tokens: int = 12
    ignore_eos: bool = True
    stop: frozenset[int] = frozenset()
    private: bool = False

    def make(self, setting: Setting, request_id: int) -> Witness:
        """The request, fresh."""
        return (PrivateWitness if self.private else BlockWitness)(
            request_id=request_id,
            prompt=np.array(self.prompt, dtype=np.int64),
            params=SamplingParams(
                seed=self.seed,
                max_tokens=self.max_tokens,
                ignore_eos=self.ignore_eos,
                stop_token_ids=tuple(self.stop),
            ),
            context=setting.context,
        )


def expected(setting: Setting, ask: Asked) -> Answer:
    """The answer to a request when nobody else is there."""
    return answer_alone(ask.make(setting, 0), setting.pattern)


def ask(prompt_len: int, *, first: int = 0, max_tokens: int = 12, seed: int = 0) -> Ask:
    """A request over the prompt `first`, `first + 1`, ..."""
    return Ask(prompt=tuple((first + at) % WORDS for at in range(prompt_len)), max_tokens=max_tokens, seed=seed)


@st.composite
def settings(draw: st.DrawFn, *, max_model_len: int = 40) -> Setting:
    """One or several blocks at a time, block-causal and full-prefix, logits aligned and shifted."""
    return Setting(
        block_size=draw(st.sampled_from([1, 2, 4])),
        buffer_size=draw(st.sampled_from([1, 2, 3])),
        full_prefix=draw(st.booleans()),
        max_model_len=draw(st.sampled_from([18, max_model_len])),
        add_block=draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        semi_complete=draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
        accept=draw(st.sampled_from([0.3, 0.6, 0.9])),
        stability=draw(st.sampled_from([0.0, 0.0, 0.5])),
        always_force=draw(st.booleans()),
        shifted=draw(st.booleans()),
    )


@st.composite
def asks(draw: st.DrawFn, *, longest_prompt: int = 14) -> Ask:
    """A request; prompts are few, so that they share prefixes."""
    same = draw(st.sampled_from([0, 5, longest_prompt]))
    length = draw(st.one_of(st.sampled_from([4, 8, 8, 11]), st.integers(1, longest_prompt)))
    return Ask(
        prompt=tuple(int(at >= same) for at in range(length)),
        seed=draw(st.integers(0, 3)),
        max_tokens=draw(st.integers(1, 12)),
        ignore_eos=draw(st.booleans()),
        stop=draw(st.sampled_from([frozenset[int](), frozenset[int](), frozenset({3, 5})])),
    )
