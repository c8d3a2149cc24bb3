"""What the canvases of a step do together, in a few operations on the rows of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from math import inf
from typing import TYPE_CHECKING

import attrs
import numpy as np

from diffulex_core.blocks.answers import answered, starts_of
from diffulex_core.plugin import BoolArray, Decision, FloatArray, IntArray, Outline, Phase, SampleGroups, Spans, Terms
from diffulex_gemma.decision import CanvasDecision
from diffulex_gemma.denoising import temperature, within_bound
from diffulex_gemma.draws import Draws, seed_of
from diffulex_gemma.options import DenoisingOptions

if TYPE_CHECKING:
    from diffulex_gemma.request import CanvasRequest


@attrs.frozen(kw_only=True)
class Denoising:
    """A `ReqKind`: canvases on the same schedule, each of which goes on as if it were alone.

    Attributes:
        options: the strategy's.
        canvas_size: positions of a canvas.
        vocab_size: ids below it are noise.
        source: of random numbers.
    """

    options: DenoisingOptions
    canvas_size: int
    vocab_size: int
    source: Draws

    def terms(self, step: int) -> Terms:
        """On which a canvas is asked in its step `step`."""
        options = self.options
        steps, low, high = (
            options.diffusion_gemma_max_denoising_steps,
            options.diffusion_gemma_t_min,
            options.diffusion_gemma_t_max,
        )
        return Terms(accept_threshold=inf, force_one=False, temperature=temperature(step, steps, low, high))

    def plan(self, requests: Sequence[CanvasRequest], outlines: Sequence[Outline]) -> Spans:
        """As `CanvasRequest.plan` for each; the spans are the canvases."""
        numbers = np.fromiter(chain.from_iterable(outlines), dtype=np.int64).reshape(len(outlines), -1).T
        start, sizes = numbers[0], numbers[1] - numbers[0]
        rows = np.arange(int(sizes.sum())) - np.repeat(starts_of(sizes), sizes)
        steps = [request.step for request in requests]
        terms = {step: self.terms(step) for step in set(steps)}
        most = self.options.diffusion_gemma_max_denoising_steps
        return Spans(
            numbers=numbers,
            phases=[Phase.DECODE] * len(requests),
            advances=[True] * len(requests),
            tokens=np.concatenate([request.draft for request in requests]),
            groups=SampleGroups(
                blocks=[request.canvas_index for request in requests],
                sizes=sizes.tolist(),
                positions=rows + np.repeat(start, sizes),
                rows=rows,
                terms=[terms[step] for step in steps],
            ),
            counts=[1] * len(requests),
            asked=sizes.tolist(),
            beliefs=np.array([[step > 0 for step in steps], [step + 1 < most for step in steps]]),
        )

    def apply(self, requests: Sequence[CanvasRequest], spans: Spans, decisions: Sequence[Decision]) -> None:
        """As `CanvasRequest.apply` for each."""
        answered(requests, spans, decisions)
        some = [at for at, asked in enumerate(spans.asked) if asked]
        for at in some:
            decision = decisions[at]
            assert isinstance(decision, CanvasDecision), "the strategy's own sampler decides"
            if requests[at].take(decision.tokens, decision.entropy):
                decision.accepted[:] = True
        if some:
            self._redraw([requests[at] for at in some], [decisions[at] for at in some])
        for request, until in zip(requests, spans.store_until.tolist(), strict=True):
            request.went_on(until)

    def noise(self, requests: Sequence[CanvasRequest]) -> list[IntArray]:
        """What the canvases of some requests hold where nothing is drawn for them."""
        positions = [request.positions for request in requests]
        sizes = np.array([*map(len, positions)])
        seeds = np.array([seed_of(request.params) for request in requests], dtype=np.int64)
        draws = np.array([request.draws for request in requests], dtype=np.int64)
        ids = self.source.noise(
            np.repeat(seeds, sizes), np.repeat(draws, sizes), np.concatenate(positions), self.vocab_size
        )
        return [ids[first:last] for first, last in pairwise([0, *accumulate(sizes.tolist())])]

    def _redraw(self, requests: Sequence[CanvasRequest], decisions: Sequence[Decision]) -> None:
        """Give each request the canvas that its next step reads."""
        noise = self.noise(requests)
        redrawn = [at for at, request in enumerate(requests) if request.step]
        drawn, entropies = list[IntArray](), list[FloatArray]()
        for at in redrawn:
            decision = decisions[at]
            assert isinstance(decision, CanvasDecision), "the strategy's own sampler decides"
            drawn.append(decision.drawn)
            entropies.append(decision.entropy)
        kept = _within_bound(entropies, self.options.diffusion_gemma_entropy_bound)
        for at, own, mine in zip(redrawn, drawn, kept, strict=True):
            noise[at] = np.where(mine, own, noise[at])
        for request, canvas in zip(requests, noise, strict=True):
            request.draft = canvas


def _within_bound(entropies: Sequence[FloatArray], bound: float) -> Sequence[BoolArray]:
    """`within_bound` of each, those of one length at once."""
    if len({*map(len, entropies)}) == 1:
        return [*within_bound(np.stack(entropies), bound)]
    return [within_bound(entropy, bound) for entropy in entropies]
