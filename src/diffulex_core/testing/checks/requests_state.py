"""Checks of a request's state: planning, bad decisions and lost pages do not spoil it, and nobody shares it."""

from __future__ import annotations

import pickle
from itertools import count

import attrs
import numpy as np

from diffulex_core.testing.asks import asks, flips
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.journeys import Ask, Journey, bench, shown, visible
from diffulex_core.testing.subjects import StrategySubject
from diffulex_core.types import Decision, Span


@check(StrategySubject)
def check_planning_changes_nothing(subject: StrategySubject, effort: Effort) -> None:
    """`plan()` says what to feed next and changes nothing: asked again, it says the same, and the answer is the same.

    Why: the scheduler plans a request several times in a step, with different budgets, and drops spans that do not fit.
    Whoever counts or draws in `plan()` then depends on who else is there.
    Fix: move state in `apply()` only, and draw from the request's seed and counters. Give spans copies of token arrays,
    so that they do not change when the request does.
    """
    with bench(subject) as made:

        @effort.for_all(0.3, ask=asks(made))
        def holds(ask: Ask) -> None:
            quiet, asked = made.journey(ask), made.journey(ask)
            wanted = quiet.finish()
            while asked.request.completion is None:
                before, first = _state(asked), shown(asked.plan())
                for budget in (1, made.context.pattern.block_size, asked.request.most_rows(), None):
                    asked.plan(budget)
                if _state(asked) != before:
                    raise CheckFailed(f"step {asked.steps} of {asked}: plan() changed what the request shows")
                if shown(asked.plan()) != first:
                    raise CheckFailed(
                        f"step {asked.steps} of {asked}: plan() gives another span when it is asked again"
                    )
                span = asked.advance()
                if shown(span) != first:
                    raise CheckFailed(
                        f"step {asked.steps} of {asked}: the span changed when its decision was applied; it shares "
                        "arrays with the request"
                    )
            if asked.output != wanted:
                raise CheckFailed(f"{asked} answers {list(asked.output)} when it is planned often, else {list(wanted)}")


@check(StrategySubject)
def check_foreign_decisions_are_refused(subject: StrategySubject, effort: Effort) -> None:
    """`apply()` of a decision about positions that the span did not ask for raises, and the state stays as it was.

    Why: a sampler that mixes up its rows would write into the prompt or into stored text, and nobody would see why.
    Fix: compare `decision.positions` with those of the span's groups before anything changes, and raise ValueError.
    """
    with bench(subject) as made:

        @effort.for_all(0.3, ask=asks(made))
        def holds(ask: Ask) -> None:
            journey, wanted = made.journey(ask), made.journey(ask).finish()
            while journey.request.completion is None:
                span = journey.plan()
                if span is not None and span.groups:
                    decision = journey.decide(span)
                    for name, foreign in _foreign(decision, span):
                        _expect_refusal(journey, span, foreign, name)
                journey.advance()
            if journey.output != wanted:
                raise CheckFailed(f"{journey} answers {list(journey.output)} after refusals, else {list(wanted)}")


@check(StrategySubject)
def check_requests_survive_losing_their_pages(subject: StrategySubject, effort: Effort) -> None:
    """A request that loses its pages, at any step and as often as it happens, answers as if it had kept them.

    Why: the scheduler takes pages away when they run out, so an answer would depend on how busy the engine was.
    Fix: keep tokens and counters in the request, plan from `stored` instead of remembering what was fed, and forget in
    `preempted()` whatever relied on K/V that were not final.
    """
    with bench(subject) as made:

        @effort.for_all(0.4, ask=asks(made), lost=flips(), cached=flips())
        def holds(ask: Ask, lost: list[bool], cached: list[bool]) -> None:
            journey, whole = made.journey(ask), made.journey(ask)
            wanted = whole.finish()
            while journey.request.completion is None:
                span = journey.advance()
                # One that loses its pages before it could use them has no chance to go on, and nobody does that.
                if span.advances and journey.request.completion is None and lost[journey.steps % len(lost)]:
                    before = journey.output, journey.request.known_tokens.tobytes()
                    journey.preempt(cached=cached[journey.steps % len(cached)])
                    if (journey.output, journey.request.known_tokens.tobytes()) != before:
                        raise CheckFailed(f"in step {journey.steps} preempted() changed the answer of {journey}")
            if journey.output != wanted or journey.request.completion is not whole.request.completion:
                raise CheckFailed(
                    f"{journey} answers {list(journey.output)} ({journey.request.completion}) where its pages are lost "
                    f"{journey.preemptions} times, else {list(wanted)} ({whole.request.completion})"
                )


@check(StrategySubject)
def check_requests_share_nothing(subject: StrategySubject, effort: Effort) -> None:
    """Two requests that take turns answer as each does alone; neither id nor what was served before changes an answer.

    Why: state of the class or the module makes one user's answer depend on another's, and leaks text between them.
    Fix: keep all state on the request, derive randomness from `SamplingParams.seed` and positions, not from the id, and
    use no random generator that others use too.
    """
    with bench(subject) as made:
        # Each pair has ids of its own, which change hands: what is remembered by id then meets the other request.
        numbers = count(0, 2)

        @effort.for_all(0.25, ask=asks(made), other=asks(made))
        def holds(ask: Ask, other: Ask) -> None:
            number = next(numbers)
            wanted = [made.journey(each, request_id=number + at).finish() for at, each in enumerate((ask, other))]
            together = [made.journey(each, request_id=number + 1 - at) for at, each in enumerate((ask, other))]
            while any(each.request.completion is None for each in together):
                for each in together:
                    if each.request.completion is None:
                        each.advance()
            for each, alone in zip(together, wanted, strict=True):
                if each.output != alone:
                    raise CheckFailed(
                        f"{each} answers {list(each.output)} beside another request and with another id, alone "
                        f"{list(alone)}"
                    )


@check(StrategySubject)
def check_steps_can_be_sent(subject: StrategySubject, effort: Effort) -> None:
    """Spans and decisions survive pickling: a request goes on from what comes back as it would have from the originals.

    Why: with tensor or data parallelism plans go to other processes, and decisions come back.
    Fix: keep numbers, arrays and frozen values of classes that stand at the top of a module in them, no functions and
    nothing of the request.
    """
    with bench(subject) as made:

        @effort.for_all(0.2, ask=asks(made))
        def holds(ask: Ask) -> None:
            sent, wanted = made.journey(ask), made.journey(ask).finish()
            while sent.request.completion is None:
                span = sent.plan()
                there = pickle.loads(pickle.dumps(span))
                if shown(there) != shown(span):
                    raise CheckFailed(f"the span of step {sent.steps} of {sent} is another one after pickling")
                sent.advance(through=lambda decision: pickle.loads(pickle.dumps(decision)))
            if sent.output != wanted:
                raise CheckFailed(
                    f"{sent} answers {list(sent.output)} where decisions are pickled, else {list(wanted)}"
                )


def _state(journey: Journey) -> tuple[object, ...]:
    return journey.request.nfe, journey.request.draws, *visible(journey.request)


def _foreign(decision: Decision, span: Span) -> list[tuple[str, Decision]]:
    """The decision, about positions that nobody asked for."""
    every = np.ones(len(decision.positions), dtype=np.bool_)
    return [
        (name, attrs.evolve(decision, positions=positions, accepted=every))
        for name, positions in (
            ("before the ones asked for", np.arange(len(every)) + int(decision.positions.min()) - len(every)),
            ("behind the span", np.arange(len(every)) + span.end + 1),
        )
    ]


def _expect_refusal(journey: Journey, span: Span, foreign: Decision, name: str) -> None:
    before = (*_state(journey), shown(journey.plan()))
    try:
        journey.request.apply(span, foreign)
    except Exception:  # noqa: BLE001 - whatever it raises, it refused
        if (*_state(journey), shown(journey.plan())) != before:
            raise CheckFailed(
                f"step {journey.steps} of {journey}: apply() refused positions {name}, but changed its state first"
            ) from None
        return
    raise CheckFailed(
        f"step {journey.steps} of {journey}: apply() took a decision about positions {foreign.positions.tolist()}, "
        f"{name}"
    )


CHECKS: tuple[AnyCheck, ...] = (
    check_planning_changes_nothing,
    check_foreign_decisions_are_refused,
    check_requests_survive_losing_their_pages,
    check_requests_share_nothing,
    check_steps_can_be_sent,
)
