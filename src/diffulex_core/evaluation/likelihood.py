"""Log-likelihoods of answers: many forwards over partly hidden answers, batched by the engine, summed up here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from diffulex_core.admission import Prompt, check_ids, encode
from diffulex_core.compat import missing_capabilities
from diffulex_core.config import EngineConfig
from diffulex_core.descriptors import Capability, DecodingStrategy
from diffulex_core.errors import (
    IncompatibleError,
    InvalidPrompt,
    InvalidSamplingParams,
    NonFiniteLogits,
    PromptTooLong,
    RequestError,
)
from diffulex_core.evaluation.masks import Masks, draw_masks, seed_for
from diffulex_core.evaluation.request import LikelihoodRequest
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.pattern import IntArray
from diffulex_core.progress import Progress
from diffulex_core.req_context import ReqContext
from diffulex_core.types import CompletionReason, FloatArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from diffulex_core.engine import Diffulex

MOST_DRAWS = 1 << 16


def _whole(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_DRAWS:
        raise InvalidSamplingParams(f"{attribute.name} is {value!r}; give a whole number from 1 to {MOST_DRAWS}.")


def _scale(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1000:
        raise InvalidSamplingParams(f"{attribute.name} is {value!r}; give a number from 0 to 1000.")


def _seed(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidSamplingParams(f"{attribute.name} is {value!r}; give a whole number.")


# Not one generic function: type checkers would accept everything as an argument of the constructor.
def _plain_whole(value: int) -> int:
    return value.item() if isinstance(value, np.generic) else value


def _plain_number(value: float) -> float:
    return value.item() if isinstance(value, np.generic) else value


@attrs.frozen(kw_only=True)
class Estimate:
    """How the estimate is made; see `Diffulex.log_likelihood`. Numpy's numbers are as good as Python's."""

    mc_num: int = attrs.field(default=128, converter=_plain_whole, validator=_whole)
    batch_size: int = attrs.field(default=16, converter=_plain_whole, validator=_whole)
    cfg_scale: float = attrs.field(default=0.0, converter=_plain_number, validator=_scale)
    seed: int = attrs.field(default=0, converter=_plain_whole, validator=_seed)


@attrs.frozen(kw_only=True, eq=False)
class Pair:
    """A context and the continuation that is looked at: [n] and [m] token ids, m at least 1."""

    context: IntArray
    continuation: IntArray

    def __len__(self) -> int:
        return len(self.context) + len(self.continuation)


def log_likelihoods(
    engine: Diffulex,
    pairs: Sequence[tuple[Prompt, Prompt]],
    how: Estimate,
    *,
    strategies: Iterable[DecodingStrategy],
    vocab_size: int,
    context: ReqContext,
    shown: bool,
    log_interval: float,
) -> list[float]:
    """One estimate for each pair, in their order; see `Diffulex.log_likelihood`.

    The longest come first, so that one that can never fit is refused before anything is computed.

    Args:
        strategies: all that are registered, to propose one that would do.
        vocab_size, context: the engine's.
        shown, log_interval: of the progress.
    """
    _check_strategy(engine.config, strategies)
    asked = [
        _read(at, pair, tokenizer=engine.tokenizer, vocab_size=vocab_size, context=context)
        for at, pair in enumerate(pairs)
    ]
    order = sorted(range(len(asked)), key=lambda at: -len(asked[at]))
    bar = Progress(
        total=len(asked), shown=shown, log_interval=log_interval, unit="pair", doing="Evaluating", done="evaluated"
    )
    with bar as progress:
        return _Evaluation(engine, asked, context, how).run(order, progress)


@attrs.define(kw_only=True, eq=False)
class _Tally:
    """One pair's forwards."""

    pair: int
    masks: Masks
    terms: FloatArray
    """[masks] what each contributes."""
    left: int


@attrs.define(eq=False)
class _Evaluation:
    """The forwards on their way through the engine, a bounded number at a time."""

    engine: Diffulex
    pairs: Sequence[Pair]
    context: ReqContext
    how: Estimate
    _running: dict[int, tuple[LikelihoodRequest, _Tally, int]] = attrs.field(factory=dict, init=False)
    _values: dict[int, float] = attrs.field(factory=dict, init=False)
    _failed: list[int] = attrs.field(factory=list, init=False)
    """Pairs whose logits were not finite."""
    _abandoned: list[int] = attrs.field(factory=list, init=False)
    """Pairs of which somebody else ended a forward."""

    def run(self, order: Sequence[int], progress: Progress) -> list[float]:
        config, jobs = self.engine.config, self._jobs(order)
        most = 2 * config.schedule.max_num_reqs * config.parallel.data_parallel_size
        try:
            while True:
                while len(self._running) < most and (job := next(jobs, None)) is not None:
                    self._submit(*job)
                if not self._running:
                    return [self._values[at] for at in range(len(self.pairs))]
                self.engine.step(collect=False)
                if self._failed:
                    error = NonFiniteLogits([self._failed[0]])
                    error.add_note(f"The number counts the pairs of log_likelihood: {self._failed[0]}.")
                    raise error
                if self._abandoned:
                    raise RequestError(
                        f"Pair {self._abandoned[0]}: one of its forwards was aborted, so it has no value. Abort only "
                        "the requests that you added, and ask again."
                    )
                progress.update(done=len(self._values))
        finally:
            for request_id in list(self._running):
                self.engine.abort_request(request_id)

    def _jobs(self, order: Sequence[int]) -> Iterator[tuple[_Tally, int]]:
        for pair in order:
            asked = self.pairs[pair]
            masks = draw_masks(
                len(asked.continuation),
                draws=self.how.mc_num,
                batch=self.how.batch_size,
                seed=seed_for(self.how.seed, asked.context),
            )
            tally = _Tally(pair=pair, masks=masks, terms=np.zeros(len(masks)), left=len(masks))
            yield from ((tally, at) for at in range(len(masks)))

    def _submit(self, tally: _Tally, at: int) -> None:
        asked, mask = self.pairs[tally.pair], self.context.mask_token_id
        assert mask is not None, "strategies with full attention require the mask_token capability"

        def make(request_id: int) -> LikelihoodRequest:
            return LikelihoodRequest(
                request_id=request_id,
                tokens=np.concatenate((asked.context, asked.continuation)),
                prompt_len=len(asked.context),
                hidden=np.flatnonzero(tally.masks.hidden[at]) + len(asked.context),
                mask_token_id=mask,
                shifted=self.context.shifted,
                cfg_scale=self.how.cfg_scale,
            )

        request = self.engine.submit(make, deliver=self._take)
        self._running[request.request_id] = (request, tally, at)

    def _take(self, record: ReqTrajectory) -> None:
        """Enter what a forward found, or that it failed or was abandoned."""
        request, tally, at = self._running.pop(record.req_id)
        if record.completion_reason is not CompletionReason.LENGTH_TOKENS:
            missed = self._failed if record.completion_reason is CompletionReason.ERROR else self._abandoned
            missed.append(tally.pair)
            return
        hidden = tally.masks.hidden[at]
        tally.terms[at] = request.log_probability * tally.masks.share[at] * len(hidden) / hidden.sum()
        tally.left -= 1
        if tally.left == 0:
            self._values[tally.pair] = math.fsum(tally.terms)


def _check_strategy(config: EngineConfig, strategies: Iterable[DecodingStrategy]) -> None:
    """Refuse strategies that do not run the network under full attention, as the estimate needs."""
    if Capability.FULL_ATTENTION in config.strategy.requires:
        return
    fitting = sorted(
        other.name
        for other in strategies
        if Capability.FULL_ATTENTION in other.requires and not missing_capabilities(config.family, other)
    )
    advice = (
        f"Choose decoding_strategy={' or '.join(map(repr, fitting))}."
        if fitting
        else f"The model family {config.family.name!r} has no strategy that does; choose another model."
    )
    problem = (
        f"log_likelihood looks at whole sequences under full attention, and the decoding strategy "
        f"{config.strategy.name!r} does not run the network so. {advice}"
    )
    raise IncompatibleError([problem])


def _read(
    at: int, pair: tuple[Prompt, Prompt], *, tokenizer: PreTrainedTokenizerBase, vocab_size: int, context: ReqContext
) -> Pair:
    if isinstance(pair, str) or not isinstance(pair, (Sequence, np.ndarray)) or len(pair) != 2:
        raise InvalidPrompt(f"Pair {at} is not a context and a continuation.")
    before, after = pair
    try:
        if isinstance(before, str) and isinstance(after, str):
            before, after = _split(before, after, tokenizer)
        first, rest = (
            check_ids(
                encode(each, tokenizer) if isinstance(each, str) else each,
                vocab_size=vocab_size,
                mask_token_id=context.mask_token_id,
            )
            for each in (before, after)
        )
        read = Pair(context=first, continuation=rest)
    except InvalidPrompt as error:
        raise InvalidPrompt(f"Pair {at}: {error}") from error
    if len(read.continuation) == 0:
        raise InvalidPrompt(f"Pair {at}: the continuation has no tokens; there is nothing to look at.")
    if len(read) > context.max_model_len:
        raise PromptTooLong(
            f"Pair {at} has {len(read)} tokens, but max_model_len is {context.max_model_len}. Shorten its context or "
            "raise max_model_len."
        )
    return read


def _split(before: str, after: str, tokenizer: PreTrainedTokenizerBase) -> tuple[Sequence[int], Sequence[int]]:
    """Tokens of the context, and those that the continuation adds; spaces between them belong to the continuation."""
    stripped = before.rstrip()
    first = encode(stripped, tokenizer)
    return first, encode(stripped + before[len(stripped) :] + after, tokenizer)[len(first) :]
