"""When a request ends: token limits, end-of-text tokens, forward limits, repetition."""

from __future__ import annotations

from math import inf

from diffulex_core.pattern import IntArray
from diffulex_core.req_context import AutoNFE
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import CompletionReason


class StopRules:
    """Watches the decided tokens of one request and says when it is done.

    Only decided tokens count: masks are neither tokens towards a limit nor a repetition.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt_len: int,
        max_model_len: int,
        eos_token_ids: frozenset[int],
        auto_nfe: AutoNFE | None,
    ) -> None:
        self._params = params
        self._prompt_len = prompt_len
        self._eos = frozenset() if params.ignore_eos else eos_token_ids
        self.ids = self._eos.union(params.stop_token_ids)
        """Tokens that end the answer."""
        self.nfe_cap = _nfe_cap(params, auto_nfe)
        """Most forwards that the request may take."""
        by_tokens = prompt_len + params.max_tokens
        self.limit = min(by_tokens, max_model_len)
        """Position that the answer may not reach."""
        self._limit_reason = (
            CompletionReason.LENGTH_TOKENS if by_tokens <= max_model_len else CompletionReason.LENGTH_CONTEXT
        )
        self._tokens_alone = self.nfe_cap == inf and params.max_repetition_run is None
        """Whether neither forwards nor repetition end it."""
        self.first_stop: int | None = None
        """First decided position that holds a stop token."""

    def notice(self, positions: IntArray, tokens: IntArray) -> None:
        """Look for stop tokens among newly decided positions."""
        if self.ids.isdisjoint(given := tokens.tolist()):
            return
        found = min(at for at, token in zip(positions.tolist(), given, strict=True) if token in self.ids)
        self.first_stop = found if self.first_stop is None else min(self.first_stop, found)

    def output_end(self, frontier: int) -> int:
        """Where the visible answer ends when everything before `frontier` is decided."""
        end = min(frontier, self.limit)
        return end if self.first_stop is None else min(end, self.first_stop)

    def reason(self, tokens: IntArray, frontier: int, nfe: int, *, rereads: int = 0) -> CompletionReason | None:
        """Why the request is done now, or None. A stop token outranks the limits.

        Args:
            tokens: of the whole sequence.
            frontier: everything before this position is decided.
            nfe: forwards so far.
            rereads: those of them that only fed known tokens, as many as the schedule cut them into. The automatic cap
                leaves them out.
        """
        if frontier < self.limit and self.first_stop is None and self._tokens_alone:
            return None
        end = self.output_end(frontier)
        if self.first_stop is not None and end == self.first_stop < self.limit and self.first_stop < frontier:
            eos = int(tokens[self.first_stop]) in self._eos
            return CompletionReason.STOP_EOS if eos else CompletionReason.STOP_TOKEN
        if end == self.limit:
            return self._limit_reason
        generated = end - self._prompt_len
        if nfe - (rereads if self._params.max_nfe is None else 0) >= self.nfe_cap:
            return CompletionReason.NFE_LIMIT
        run = self._params.max_repetition_run
        if run is not None and generated >= run and (tokens[end - run : end] == tokens[end - 1]).all():
            return CompletionReason.REPETITION
        return None


def _nfe_cap(params: SamplingParams, auto_nfe: AutoNFE | None) -> float:
    """Most forwards that a request may take."""
    if params.max_nfe is not None:
        return params.max_nfe
    return inf if auto_nfe is None else max(auto_nfe.warmup_steps, params.max_tokens / auto_nfe.tpf_floor)
