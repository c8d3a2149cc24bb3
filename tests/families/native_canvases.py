"""The published generation code of DiffusionGemma as an oracle: fed the same random numbers, told what it did."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import attrs
import numpy as np
import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

from diffulex_core.pattern import IntArray
from diffulex_core.types import FloatArray


@attrs.frozen
class TableDraws:
    """Random numbers that have nothing to do with the engine's own: one generator for each question."""

    def sampling(self, seeds: IntArray, draws: IntArray, positions: IntArray) -> FloatArray:
        """[rows] in [0, 1)."""
        asked = zip(seeds.tolist(), draws.tolist(), positions.tolist(), strict=True)
        return np.array([np.random.default_rng((1, *each)).random() for each in asked])

    def noise(self, seeds: IntArray, draws: IntArray, positions: IntArray, vocab_size: int) -> IntArray:
        """[n] ids below `vocab_size`."""
        asked = zip(seeds.tolist(), draws.tolist(), positions.tolist(), strict=True)
        generators = [np.random.default_rng((2, *each)) for each in asked]
        return np.array([generator.integers(vocab_size) for generator in generators], dtype=np.int64)


TABLE = TableDraws()


@attrs.frozen(kw_only=True)
class Native:
    """An answer of the published code.

    Attributes:
        tokens: the answer, all canvases whole.
        steps: denoising forwards of each canvas.
    """

    tokens: tuple[int, ...]
    steps: tuple[int, ...]


def native_answer(
    model: DiffusionGemmaForBlockDiffusion,
    prompt: Sequence[int],
    *,
    seed: int,
    max_tokens: int,
    entropy_bound: float,
    eos: Collection[int] = (),
    **generation: Any,
) -> Native:
    """What `generate` answers when its random numbers are those of `TABLE`; `generation` are keywords of its own."""
    vocab_size = model.config.text_config.vocab_size
    feed = _Feed(seed=seed, start=len(prompt), length=model.config.canvas_length, vocab_size=vocab_size)
    with _fed(feed), torch.inference_mode():
        answer = model.generate(
            torch.tensor([list(prompt)]),
            max_new_tokens=max_tokens,
            sampler_config=EntropyBoundSamplerConfig(entropy_bound=entropy_bound),
            eos_token_id=sorted(eos) or None,
            disable_compile=True,
            **generation,
        )
    return Native(tokens=tuple(answer.sequences[0, len(prompt) :].tolist()), steps=tuple(feed.steps))


@attrs.define(kw_only=True)
class _Feed:
    """Answers the calls of the published code in its order: a canvas, then a draw and a new canvas for each step."""

    seed: int
    start: int
    length: int
    vocab_size: int
    steps: list[int] = attrs.field(factory=list)
    """Of each canvas so far."""
    drew: bool = False
    """Whether tokens were drawn since the last canvas."""

    def randint(self, low: int, high: int, size: tuple[int, int], device: object) -> Tensor:
        assert (low, high, size) == (0, self.vocab_size, (1, self.length))
        if not self.drew:
            self.steps.append(0)
        self.drew = False
        same = np.ones(self.length, dtype=np.int64)
        ids = TABLE.noise(self.seed * same, sum(self.steps) * same, self._positions(), self.vocab_size)
        return torch.from_numpy(ids)[None]

    def multinomial(self, probabilities: Tensor, num_samples: int) -> Tensor:
        assert num_samples == 1
        assert probabilities.shape == (self.length, self.vocab_size)
        same = np.ones(self.length, dtype=np.int64)
        numbers = TABLE.sampling(self.seed * same, sum(self.steps) * same, self._positions())
        self.steps[-1] += 1
        self.drew = True
        chosen = []
        for row, number in zip(probabilities.double().numpy(), numbers, strict=True):
            reached = np.cumsum(row)
            chosen.append(int(np.argmax(reached > number * reached[-1])))
        return torch.tensor(chosen)[:, None]

    def _positions(self) -> IntArray:
        begin = self.start + (len(self.steps) - 1) * self.length
        return np.arange(begin, begin + self.length)


@contextmanager
def _fed(feed: _Feed) -> Iterator[None]:
    with mock.patch("torch.randint", feed.randint), mock.patch("torch.multinomial", feed.multinomial):
        yield
