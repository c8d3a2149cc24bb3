"""One forward over a question and a partly hidden answer: a request that decides nothing and watches what is hidden."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from diffulex_core.errors import PluginError
from diffulex_core.pattern import IntArray, Phase
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import Canvas, CompletionReason, Decision, Guidance, SampleGroup, Span


class LikelihoodRequest:
    """A canvas that is full but for some positions, whose tokens are known all the same.

    It takes one forward, under full attention, and then knows how probable the hidden tokens were.
    """

    def __init__(
        self,
        *,
        request_id: int,
        tokens: IntArray,
        prompt_len: int,
        hidden: IntArray,
        mask_token_id: int,
        shifted: bool,
        cfg_scale: float,
    ) -> None:
        """
        Args:
            tokens: [n] question and answer.
            prompt_len: length of the question.
            hidden: [m] positions of the answer that are fed as masks, ascending, at least one.
            shifted: row i of the logits predicts position i + 1.
            cfg_scale: weight of classifier-free guidance; 0 = none.
        """
        self.request_id: Final = request_id
        self.params: Final = SamplingParams(temperature=0, max_tokens=len(tokens) - prompt_len)
        self._tokens = tokens
        self.prompt_len: Final = prompt_len
        self._hidden = hidden
        self._mask = mask_token_id
        self._shifted = shifted
        self._scale = cfg_scale
        self._nfe = 0
        self._completion: CompletionReason | None = None
        self.log_probability = math.nan
        """Sum of the natural logarithms of the hidden tokens' probabilities; NaN before the forward."""

    @property
    def guided(self) -> bool:
        return self._scale > 0

    @property
    def nfe(self) -> int:
        return self._nfe

    @property
    def draws(self) -> int:
        return self._nfe

    @property
    def completion(self) -> CompletionReason | None:
        return self._completion

    @property
    def known_tokens(self) -> IntArray:
        return self._tokens[:0]

    @property
    def stored_tokens(self) -> IntArray:
        return self._fed()

    @property
    def output_tokens(self) -> IntArray:
        return self._tokens[:0]

    @property
    def canvas(self) -> Canvas:
        decided = np.ones(len(self._tokens), dtype=np.bool_)
        decided[self._hidden] = False
        return Canvas(
            start=self.prompt_len,
            tokens=self._fed()[self.prompt_len :],
            decided=decided[self.prompt_len :],
            committed=0,
            block_size=len(self._tokens),
            running_blocks=((0, "active"),),
        )

    def most_slots(self) -> int:
        return len(self._tokens)

    def most_rows(self) -> int:
        return len(self._tokens) * (2 if self.guided else 1)

    def plan(self, stored: int, budget: int | None) -> Span | None:
        if budget is not None and self.most_rows() > budget:
            return None
        fed = self._fed()
        group = SampleGroup(
            block=0,
            positions=self._hidden,
            rows=np.maximum(self._hidden - 1, 0) if self._shifted else self._hidden,
            accept_threshold=math.inf,
            force_one=False,
            watched=self._tokens[self._hidden],
            watched_raw=True,
        )
        return Span(
            start=0,
            tokens=fed,
            catch_up=0,
            store_until=0,
            phase=Phase.DECODE,
            groups=(group,),
            advances=True,
            guidance=self._guidance(fed),
        )

    def chunkable(self, stored: int) -> bool:
        return False

    def apply(self, span: Span, decision: Decision) -> None:
        """Take over what the forward told.

        Raises:
            PluginError: the sampler told nothing.
        """
        if not np.array_equal(decision.positions, self._hidden):
            raise ValueError(f"request {self.request_id}: decided positions are not the ones that were asked")
        if decision.watched_log is None:
            raise PluginError(
                "The strategy's sampler does not tell how probable watched tokens are, which log_likelihood asks for. "
                "Choose another strategy, or let the sampler set Decision.watched_log."
            )
        self.log_probability = float(decision.watched_log.sum())
        self._nfe = 1
        self._completion = CompletionReason.LENGTH_TOKENS

    def preempted(self) -> None:
        """Nothing to do: nothing was computed yet."""

    def finish(self, reason: CompletionReason) -> None:
        self._completion = reason

    def _fed(self) -> IntArray:
        tokens = self._tokens.copy()
        tokens[self._hidden] = self._mask
        return tokens

    def _guidance(self, fed: IntArray) -> Guidance | None:
        if not self.guided:
            return None
        tokens = fed.copy()
        tokens[: self.prompt_len] = self._mask
        return Guidance(tokens=tokens, scale=self._scale)
