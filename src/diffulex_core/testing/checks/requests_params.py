"""Checks of requests: what users ask for with `SamplingParams` counts, and so does the room that the engine leaves."""

from __future__ import annotations

from typing import Self

import attrs
import numpy as np
from hypothesis import strategies as st

from diffulex_core.errors import DiffulexError
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.asks import asks
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.checkpoints import PADDING
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.journeys import Ask, Journey, bench
from diffulex_core.testing.subjects import StrategySubject
from diffulex_core.types import CompletionReason

ENOUGH = 300
"""Steps in which every strategy has decided a dozen tokens, one by one and with some waiting."""


@check(StrategySubject)
def check_stop_tokens_end_answers(subject: StrategySubject, effort: Effort) -> None:
    """A token of an answer that a request names in `stop_token_ids` is not in it any more, nor is what follows it.

    Why: users cut answers by them, as at the end of a turn. Tokens behind a stop are noise that they pay for.
    Fix: stop at `SamplingParams.stop_token_ids`, whatever `ignore_eos` says, and end `output_tokens` before the first
    of them; `diffulex_core.blocks.limits.StopRules` does that.
    """
    with bench(subject) as made:

        @effort.for_all(0.3, ask=asks(made, ignore_eos=True), place=st.integers(0, 7))
        def holds(ask: Ask, place: int) -> None:
            whole = made.journey(ask).finish()
            if not whole:
                return
            stop = whole[place % len(whole)]
            stopping = made.journey(attrs.evolve(ask, params=attrs.evolve(ask.params, stop_token_ids=(stop,), stop=())))
            answer = stopping.finish()
            if stop in answer:
                raise CheckFailed(f"{stopping} answers {list(answer)}, although {stop} is one of its stop_token_ids")


@check(StrategySubject)
def check_answers_fit_into_the_model(subject: StrategySubject, effort: Effort) -> None:
    """Prompt and answer together are no longer than `max_model_len`, however much `max_tokens` allows.

    Why: behind it there are no positions that the network was trained on, and maybe none in its tables.
    Fix: end the answer at the smaller of `prompt_len + max_tokens` and `ReqContext.max_model_len`, the latter with
    CompletionReason.LENGTH_CONTEXT; or refuse the request when it is made.
    """
    with bench(subject) as made:

        @effort.for_all(0.3, ask=asks(made, max_tokens=12, ignore_eos=True), room=st.integers(1, 9))
        def holds(ask: Ask, room: int) -> None:
            length = len(ask.prompt) + room
            tight = attrs.evolve(made, context=attrs.evolve(made.context, max_model_len=length))
            try:
                journey = tight.journey(ask)
            except (DiffulexError, ValueError):
                return
            answer = journey.finish()
            if len(answer) > room:
                raise CheckFailed(
                    f"{journey} answers {len(answer)} tokens where max_model_len is {length}, which leaves {room}"
                )
            if len(answer) == room and journey.request.completion is CompletionReason.LENGTH_TOKENS:
                raise CheckFailed(f"{journey} ended for its max_tokens; it was max_model_len ({length}) that ended it")


@check(StrategySubject)
def check_unsure_networks_end_too(subject: StrategySubject, effort: Effort) -> None:
    """A request ends although its network is sure of nothing, whatever thresholds it sets.

    Why: a block of which no token ever passes the threshold would stand still for ever, and its caller wait.
    Fix: let every block decide at least one position in a step once those before it are decided
    (`SampleGroup.force_one`), or limit the steps that it may take.
    """
    with bench(subject) as made:
        for salt, length in enumerate((5, 8)):
            params = SamplingParams(
                temperature=0, max_tokens=11, ignore_eos=True, seed=salt, thresholds={"accept_threshold": 1.0}
            )
            journey = _Unsure.of(made.journey(Ask(prompt=made.vocabulary.plain[:length], params=params, logits=salt)))
            for _ in range(ENOUGH):
                if journey.request.completion is not None:
                    break
                span = journey.plan()
                if span is None:
                    raise CheckFailed(f"{journey} plans nothing after {journey.steps} steps, so it never ends")
                journey.execute(span)
            else:
                raise CheckFailed(
                    f"{journey} has not ended after {journey.steps} steps of a network that is sure of nothing, with "
                    f"accept_threshold=1; its answer so far is {list(journey.output)}"
                )


@check(StrategySubject, level="recommended")
def check_repetition_ends_requests(subject: StrategySubject, effort: Effort) -> None:
    """A request that repeats one token ends once its answer holds as many of them as `max_repetition_run` says.

    Why: a network that got stuck says the same token to the end of its limit, and users pay for all of them.
    Fix: end the request with CompletionReason.REPETITION when the answer so far ends in that many equal tokens;
    `diffulex_core.blocks.limits.StopRules` does that. Without it, refuse the parameter.
    """
    run = 3
    with bench(subject) as made:
        params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, seed=0, max_repetition_run=run)
        journey = _Stuck.of(made.journey(Ask(prompt=made.vocabulary.plain[:6], params=params)))
        while journey.request.completion is None:
            journey.advance()
            answer = journey.output
            if journey.request.completion is None and len(answer) >= run and len(set(answer[-run:])) == 1:
                raise CheckFailed(f"{journey} goes on after {list(answer)}, with max_repetition_run={run}")


@attrs.define(kw_only=True, eq=False)
class _Unsure(Journey):
    """The network prefers no token by much."""

    @classmethod
    def of(cls, journey: Journey) -> Self:
        """A journey at its beginning."""
        return cls(bench=journey.bench, ask=journey.ask, request=journey.request, shadow=journey.shadow)

    def logits(self, position: int) -> np.typing.NDArray[np.float32]:
        """[columns] almost the same for every token."""
        random = np.random.default_rng((self.ask.logits, position, self.request.draws))
        return random.random(self.bench.vocabulary.size + PADDING, dtype=np.float32) * np.float32(0.1)


class _Stuck(_Unsure):
    """The network says one token everywhere."""

    def logits(self, position: int) -> np.typing.NDArray[np.float32]:
        """[columns] sure of the first token that is nothing special."""
        row = np.zeros(self.bench.vocabulary.size + PADDING, dtype=np.float32)
        row[self.bench.vocabulary.plain[0]] = 30
        return row


def _is_greedy(subject: StrategySubject) -> str | None:
    """`when` of what is said of drawn tokens."""
    return "it forces a temperature" if "temperature" in subject.strategy.forces else None


@check(StrategySubject, when=_is_greedy, level="recommended")
def check_temperature_and_seed_count(subject: StrategySubject, effort: Effort) -> None:
    """Above temperature 0 another seed gives another answer, at least where the network is unsure.

    Why: users who ask for several answers get the same one several times otherwise.
    Fix: ask the sampler for drawn tokens (`SampleGroup.greedy` is false, `SampleGroup.temperature` None), and pass the
    request's own parameters on. A strategy that is greedy by its nature declares this check in `expected_failures`.
    """
    with bench(subject) as made:
        answers = set[tuple[int, ...]]()
        for seed in range(4):
            params = SamplingParams(temperature=1.5, max_tokens=12, ignore_eos=True, seed=seed)
            journey = _Unsure.of(made.journey(Ask(prompt=made.vocabulary.plain[:7], params=params)))
            while journey.request.completion is None:
                if any(group.temperature is not None for group in journey.advance().groups):
                    return  # the strategy has a temperature of its own
            answers.add(journey.output)
        if len(answers) == 1:
            raise CheckFailed(f"with each of four seeds the answer at temperature 1.5 is {list(*answers)}")


CHECKS: tuple[AnyCheck, ...] = (
    check_stop_tokens_end_answers,
    check_answers_fit_into_the_model,
    check_unsure_networks_end_too,
    check_repetition_ends_requests,
    check_temperature_and_seed_count,
)
