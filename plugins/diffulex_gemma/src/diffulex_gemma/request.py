"""The request of the strategy: canvas after canvas from the end of the prompt, each encoded once it is accepted."""

from __future__ import annotations

from typing import Final

import numpy as np

from diffulex_core.blocks.limits import StopRules
from diffulex_core.plugin import (
    NO_ROW,
    Canvas,
    CompletionReason,
    Decision,
    FloatArray,
    IntArray,
    Outline,
    Phase,
    ReqContext,
    SampleGroup,
    SamplingParams,
    Span,
    Spans,
)
from diffulex_gemma.denoising import confident, stable
from diffulex_gemma.draws import COUNTER, Draws
from diffulex_gemma.options import DenoisingOptions
from diffulex_gemma.together import Denoising


class CanvasRequest:
    """A request whose answer is denoised one canvas at a time.

    The canvas is fed as a whole in every step, behind whatever before it is not encoded yet: the prompt, the canvas
    that was accepted last, or all of it after a preemption. What is encoded is causal and may be cut anywhere.
    """

    def __init__(
        self,
        *,
        request_id: int,
        prompt: IntArray,
        params: SamplingParams,
        context: ReqContext,
        draws: Draws = COUNTER,
    ) -> None:
        assert context.vocab_size is not None, "noise needs to know the vocabulary"
        assert isinstance(context.options, DenoisingOptions), "the strategy's options"
        self.request_id: Final = request_id
        self.params: Final = params
        self.prompt_len: Final = len(prompt)
        self._options = context.options
        self.kind: Final = Denoising(
            options=context.options,
            canvas_size=context.pattern.block_size,
            vocab_size=context.vocab_size,
            source=draws,
        )
        """What canvases on the same schedule do together."""
        self._stop = StopRules(
            params,
            prompt_len=len(prompt),
            max_model_len=context.max_model_len,
            eos_token_ids=context.eos_token_ids,
            auto_nfe=context.auto_nfe,
        )
        self._canvas_size = context.pattern.block_size
        answer = self._stop.limit - len(prompt)
        if not self._options.diffusion_gemma_shorten_last_canvas:
            answer = -(-answer // self._canvas_size) * self._canvas_size
        self._tokens: IntArray = np.zeros(len(prompt) + answer, dtype=np.int64)
        self._tokens[: len(prompt)] = prompt
        self._start = len(prompt)
        """First position of the canvas; everything before it is final."""
        self._encoded = len(prompt)
        """Positions before this one need no decoding any more: prompt, and what was encoded once."""
        self._nfe = self._draws = 0
        self._completion: CompletionReason | None = None
        self._best: list[IntArray] = []
        """The canvas's most probable tokens after each of its steps so far."""
        [self.draft] = self.kind.noise([self])
        """[n] what the next step reads of the canvas."""

    @property
    def nfe(self) -> int:
        return self._nfe

    @property
    def draws(self) -> int:
        return self._draws

    @property
    def completion(self) -> CompletionReason | None:
        return self._completion

    @property
    def known_tokens(self) -> IntArray:
        return self._tokens[: self._start]

    @property
    def stored_tokens(self) -> IntArray:
        return self._tokens[: self._end]

    @property
    def output_tokens(self) -> IntArray:
        end = max(self.prompt_len, self._stop.output_end(self._start))
        return self._tokens[self.prompt_len : end].copy()

    @property
    def canvas(self) -> Canvas:
        """The canvas that is being denoised shows its most probable tokens, undecided until all of it is accepted."""
        begin, running = self.prompt_len, len(self._best) > 0
        end = self._end if running else self._start
        draft = self._best[-1] if running else self._tokens[:0]
        index = (self._start - begin) // self._canvas_size
        return Canvas(
            start=begin,
            tokens=np.concatenate((self._tokens[begin : self._start], draft)),
            decided=np.arange(begin, end) < self._start,
            committed=self._encoded - begin,
            block_size=self._canvas_size,
            running_blocks=((index, "active"),) if running else (),
        )

    def most_slots(self) -> int:
        return len(self._tokens)

    def most_rows(self) -> int:
        return min(self._canvas_size, len(self._tokens) - self.prompt_len)

    def plan(self, stored: int, budget: int | None) -> Span | None:
        rows = self._end - stored
        if budget is None or rows <= budget:
            return self._denoise(stored)
        end = min(stored + budget, self._start)
        return self._encode(stored, end) if end > stored else None

    def outline(self, stored: int) -> Outline | None:
        if self.chunkable(stored):
            return None
        return Outline(stored, self._end, 0, stored, self._start, NO_ROW)

    def chunkable(self, stored: int) -> bool:
        return stored < self._start

    def apply(self, span: Span, decision: Decision) -> None:
        self.kind.apply([self], Spans.of([span]), [decision])

    @property
    def step(self) -> int:
        """Steps that the canvas has had."""
        return len(self._best)

    @property
    def positions(self) -> IntArray:
        """[n] of the canvas."""
        return np.arange(self._start, self._end)

    @property
    def canvas_index(self) -> int:
        """How many canvases came before it."""
        return (self._start - self.prompt_len) // self._canvas_size

    def take(self, tokens: IntArray, entropy: FloatArray) -> bool:
        """One step of the canvas: accept it or not. What the next step reads is to be drawn.

        Args:
            tokens, entropy: [n] as in `CanvasDecision`.
        """
        options, earlier = self._options, self._best
        self._draws += 1
        self._best = [*earlier, tokens]
        last = len(self._best) == options.diffusion_gemma_max_denoising_steps
        settled = stable(tokens, earlier, options.diffusion_gemma_stability_threshold)
        accepted = last or (settled and confident(entropy, options.diffusion_gemma_confidence_threshold))
        if accepted:
            self._accept(tokens)
        return accepted

    def went_on(self, stored: int) -> None:
        """Count a forward that leaves all positions before `stored` encoded, and see whether the request is done."""
        self._encoded = max(self._encoded, stored)
        self._nfe += 1
        self._completion = self._stop.reason(self._tokens, self._start, self._nfe, rereads=self._nfe - self._draws)

    def preempted(self) -> None:
        """Nothing to do: the canvas is here, and the runner keeps what was believed of it."""

    def finish(self, reason: CompletionReason) -> None:
        self._completion = reason

    @property
    def _end(self) -> int:
        """Position after the canvas."""
        return min(self._start + self._canvas_size, len(self._tokens))

    def _denoise(self, stored: int) -> Span:
        """What is not encoded yet, and a step of the canvas behind it."""
        terms, positions = self.kind.terms(self.step), self.positions
        group = SampleGroup(
            block=self.canvas_index,
            positions=positions,
            rows=positions - stored,
            accept_threshold=terms.accept_threshold,
            force_one=terms.force_one,
            temperature=terms.temperature,
        )
        return Span(
            start=stored,
            tokens=np.concatenate((self._tokens[stored : self._start], self.draft)),
            catch_up=max(0, self._encoded - stored),
            store_from=stored,
            store_until=self._start,
            phase=Phase.DECODE,
            groups=(group,),
            advances=True,
            recall=self.step > 0,
            remember=self.step + 1 < self._options.diffusion_gemma_max_denoising_steps,
        )

    def _encode(self, stored: int, end: int) -> Span:
        """A piece of what is not encoded yet, without the canvas."""
        return Span(
            start=stored,
            tokens=self._tokens[stored:end].copy(),
            catch_up=max(0, min(self._encoded, end) - stored),
            store_from=stored,
            store_until=end,
            phase=Phase.DECODE,
            groups=(),
            advances=self._encoded < end,
        )

    def _accept(self, tokens: IntArray) -> None:
        """Make the canvas final and start the next one, if there is room for it."""
        positions = self.positions
        self._tokens[positions] = tokens
        self._stop.notice(positions, tokens)
        self._start, self._best = self._end, []
