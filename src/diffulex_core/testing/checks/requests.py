"""Checks of requests: prompts and committed text stay, answers are clean, and every request comes to its end."""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs
import numpy as np
from hypothesis import strategies as st

from diffulex_core.pattern import IntArray
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.asks import asks, flips
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.checks import requests_pages, requests_params, requests_rows, requests_state
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.journeys import MOST_STEPS, Ask, Journey, bench
from diffulex_core.testing.subjects import StrategySubject
from diffulex_core.types import CompletionReason, Decision, Span


@check(StrategySubject)
def check_prompt_stays(subject: StrategySubject, effort: Effort) -> None:
    """The prompt's tokens are what a request was given, in every span and every view of it, to its end.

    Why: a token of the prompt that changes answers another question than the one asked, and shared pages that were
    found by the prompt's tokens hold other K/V than the request believes.
    Fix: start blocks behind the prompt, and ask (`SampleGroup.positions`) and write only positions from `prompt_len`
    on, in the block that the prompt ends in as well.
    """
    with bench(subject) as made:

        @effort.for_all(0.3, ask=asks(made))
        def holds(ask: Ask) -> None:
            journey = made.journey(ask)
            _check_prompt(journey)
            while journey.request.completion is None:
                span = journey.advance()
                told = span.tokens[: max(0, len(ask.prompt) - span.start)]
                _expect_prompt("Span.tokens", told, span.start, journey)
                asked = np.concatenate([np.empty(0, dtype=np.int64), *(group.positions for group in span.groups)])
                if (asked < len(ask.prompt)).any():
                    raise CheckFailed(f"{journey} asks for position {int(asked.min())}, which belongs to the prompt")
                _check_prompt(journey)


@check(StrategySubject)
def check_committed_text_stays(subject: StrategySubject, effort: Effort) -> None:
    """What a request calls known, stored for good, committed or its answer so far never changes, and only grows.

    Why: K/V of stored tokens are not computed again, pages of known tokens serve other requests, and streams have shown
    the answer. A token that changes afterwards is answered from K/V of another one.
    Fix: let `known_tokens`, `Span.store_until`, `canvas.committed` and `output_tokens` end before the first position
    that a rule of the strategy may still change; a strategy that revises tokens commits a block once it is settled.
    """
    with bench(subject) as made:

        @effort.for_all(0.3, ask=asks(made), lost=flips())
        def holds(ask: Ask, lost: list[bool]) -> None:
            journey = made.journey(ask)
            views = _Views.of(journey)
            while journey.request.completion is None:
                span = journey.advance()
                views = views.followed_by(_Views.of(journey), journey)
                if span.advances and journey.request.completion is None and lost[journey.steps % len(lost)]:
                    journey.preempt(cached=False)
                    # What is stored is gone, and must come back as it was.
                    views = attrs.evolve(_Views.of(journey), final=views.final)
            end = min(len(views.final), len(journey.request.stored_tokens))
            _expect_kept("stored for good", views.final[:end], journey.request.stored_tokens, journey)


@check(StrategySubject)
def check_requests_end(subject: StrategySubject, effort: Effort) -> None:
    """A request whose network is sure of tokens ends, counts its forwards, and is not stopped by losing its pages.

    Why: a request that stands still holds its pages and its place for ever, and the callers of `generate` wait.
    Fix: plan a span whenever no budget is given, and move on with every decision: accept at least one position in a
    step (`SampleGroup.force_one`), or limit the steps that a block may take. `nfe` grows by one in each `apply`.
    """
    with bench(subject) as made:

        @effort.for_all(0.3, ask=asks(made), lost=flips(), tight=st.booleans())
        def holds(ask: Ask, lost: list[bool], tight: bool) -> None:
            journey = made.journey(ask)
            budget = journey.request.most_rows() if tight else None
            while journey.request.completion is None:
                nfe, draws = journey.request.nfe, journey.request.draws
                span = journey.advance(budget)
                if journey.request.nfe != nfe + 1 or journey.request.draws < draws:
                    raise CheckFailed(
                        f"step {journey.steps} of {journey} took nfe from {nfe} to {journey.request.nfe} and draws "
                        f"from {draws} to {journey.request.draws}; nfe grows by one, draws never fall"
                    )
                # One that loses its pages before it could use them has no chance to go on, and nobody does that.
                if span.advances and journey.request.completion is None and lost[journey.steps % len(lost)]:
                    journey.preempt(cached=False)
            if not isinstance(journey.request.completion, CompletionReason):
                raise CheckFailed(f"{journey} ended with {journey.request.completion!r}, which is no CompletionReason")


@check(StrategySubject)
def check_answers_are_clean(subject: StrategySubject, effort: Effort) -> None:
    """An answer holds decided tokens of the vocabulary only, none from its first stop token on, within its limits.

    Why: users get mask tokens and text behind the end of the answer otherwise, and pay for more than they asked for. It
    holds of answers that are cut short (abort, max_nfe) too, whose canvas still has masks.
    Fix: end `output_tokens` at the first undecided position, the first stop token (those of `ReqContext.eos_token_ids`
    unless `ignore_eos`, and `stop_token_ids`), and `max_tokens`; `diffulex_core.blocks.limits.StopRules` does that.
    """
    with bench(subject) as made:
        plain = made.vocabulary.plain

        @effort.for_all(
            0.7,
            ask=asks(made),
            stops=st.lists(st.sampled_from(plain), max_size=len(plain) // 4),
            most=st.none() | st.integers(1, 6),
            cut=st.none() | st.integers(0, 6),
        )
        def holds(ask: Ask, stops: list[int], most: int | None, cut: int | None) -> None:
            params = attrs.evolve(ask.params, stop_token_ids=tuple(stops), max_nfe=most)
            journey = made.journey(attrs.evolve(ask, params=params))
            while journey.request.completion is None:
                _check_answer(journey)
                if journey.steps == cut:
                    journey.request.finish(CompletionReason.ABORTED)
                else:
                    journey.advance()
            _check_answer(journey)
            if most is not None and journey.request.nfe > most:
                raise CheckFailed(f"{journey} took {journey.request.nfe} forwards, but max_nfe is {most}")


@check(StrategySubject)
def check_answers_are_what_was_decided(subject: StrategySubject, effort: Effort) -> None:
    """Every token of an answer was proposed by the sampler for its position.

    Why: a token that lands one position off makes answers worse and breaks nothing else.
    Fix: write `decision.tokens` at `decision.positions`.
    """
    with bench(subject) as made:

        @effort.for_all(0.4, ask=asks(made))
        def holds(ask: Ask) -> None:
            journey, offered = made.journey(ask), dict[int, set[int]]()
            while journey.request.completion is None:
                span = journey.plan()
                if span is None:
                    journey.advance()
                    continue
                for at, tokens in _offers(journey.execute(span)):
                    offered.setdefault(at, set()).update(tokens)
                if journey.steps > MOST_STEPS:
                    journey.advance()
            for at, token in enumerate(journey.output, start=len(ask.prompt)):
                if token not in offered.get(at, ()):
                    raise CheckFailed(
                        f"{journey} answers {token} at position {at}, where the sampler only ever decided "
                        f"{sorted(offered.get(at, ()))}"
                    )


@check(StrategySubject, level="recommended")
def check_the_refused_is_not_taken(subject: StrategySubject, effort: Effort) -> None:
    """Of what was asked with a finite `accept_threshold`, just what the sampler accepts is taken.

    Why: a token that was not confident enough makes answers worse and breaks nothing else.
    Fix: write tokens where `decision.accepted`. A request that decides by a rule of its own asks with an infinite
    `accept_threshold`, so that nobody takes the sampler's word for its own.
    """
    with bench(subject) as made:

        @effort.for_all(0.4, ask=asks(made))
        def holds(ask: Ask) -> None:
            journey = made.journey(ask)
            while journey.request.completion is None:
                before = _decided(journey)
                span = journey.plan()
                if span is None:
                    journey.advance()
                    continue
                _check_acceptance(journey, span, journey.execute(span), before)
                if journey.steps > MOST_STEPS:
                    journey.advance()


def _whole_canvas(subject: StrategySubject) -> str | None:
    """`when` of checks that say nothing about canvases whose every token changes all others."""
    pattern = subject.load(subject.strategy.pattern)(4)
    if pattern.dependency_end(0, 8) <= 12:
        return None
    return "its whole canvas is one piece, so that a shorter one is another problem"


@check(StrategySubject, when=_whole_canvas)
def check_shorter_limits_give_prefixes(subject: StrategySubject, effort: Effort) -> None:
    """A smaller `max_tokens` gives a prefix of what a larger one gives, in no more forwards.

    Why: a limit says how much of an answer somebody wants to see. Where it changes tokens, results of different limits
    cannot be compared, and continuing an answer contradicts it.
    Fix: keep blocks at their full width across the limit, and end the request once all positions before it are final.
    """
    with bench(subject) as made:

        @effort.for_all(0.3, ask=asks(made, max_tokens=11), limit=st.sampled_from((6, 3, 1, 8, 10)))
        def holds(ask: Ask, limit: int) -> None:
            long = made.journey(ask)
            short = made.journey(attrs.evolve(ask, params=attrs.evolve(ask.params, max_tokens=limit)))
            whole, part = long.finish(), short.finish()
            if part != whole[:limit] or short.request.nfe > long.request.nfe:
                raise CheckFailed(
                    f"{long} answers {list(whole)} in {long.request.nfe} forwards; with max_tokens={limit} it answers "
                    f"{list(part)} in {short.request.nfe}, which should be the beginning of the former"
                )


@attrs.frozen(kw_only=True, eq=False)
class _Views:
    """What a request shows of the text that is settled: known, stored for good, committed, and the answer."""

    known: IntArray
    final: IntArray
    committed: IntArray
    answer: IntArray

    @classmethod
    def of(cls, journey: Journey) -> _Views:
        request, canvas = journey.request, journey.request.canvas
        return cls(
            known=request.known_tokens.copy(),
            final=journey.shadow.tokens(0 if journey.shadow.blind else journey.stored),
            committed=canvas.tokens[: canvas.committed].copy(),
            answer=request.output_tokens.copy(),
        )

    def followed_by(self, later: _Views, journey: Journey) -> _Views:
        """The later views, which must go on from these."""
        _expect_kept("known_tokens", self.known, later.known, journey)
        _expect_kept("the canvas's committed part", self.committed, later.committed, journey)
        _expect_kept("output_tokens", self.answer, later.answer, journey)
        stored = journey.request.stored_tokens
        _expect_kept("what was stored for good", self.final[: len(stored)], stored, journey)
        if len(self.final) > len(later.final):
            # The pages were lost in between and are not filled again yet.
            _expect_kept("what was stored for good", later.final, self.final, journey)
            return attrs.evolve(later, final=self.final)
        _expect_kept("what was stored for good", self.final, later.final, journey)
        return later


def _decided(journey: Journey) -> set[int]:
    canvas = journey.request.canvas
    return set((np.flatnonzero(canvas.decided) + canvas.start).tolist())


def _offers(decision: Decision) -> Iterator[tuple[int, set[int]]]:
    """What a decision says of each position; a strategy's own kind of decision may have more tokens than one."""
    fields = [getattr(decision, field.name) for field in attrs.fields(type(decision))]
    columns = [
        each
        for each in fields
        if isinstance(each, np.ndarray) and each.dtype == np.int64 and len(each) == len(decision.positions)
    ]
    for row, at in enumerate(decision.positions.tolist()):
        found = {int(token) for each in columns for token in np.ravel(each[row])}
        if decision.alternatives is not None:
            found.update(decision.alternatives.tokens[row].tolist())
        yield at, found


def _check_acceptance(journey: Journey, span: Span, decision: Decision, before: set[int]) -> None:
    accepted, after = set(decision.positions[decision.accepted].tolist()), _decided(journey)
    for group in span.groups:
        asked = set(group.positions.tolist())
        if not math.isfinite(group.accept_threshold) or not asked.isdisjoint(before):
            continue
        if asked & after != asked & accepted:
            raise CheckFailed(
                f"in step {journey.steps} of {journey} the sampler accepted positions {sorted(asked & accepted)} of "
                f"{sorted(asked)}, and {sorted(asked & after)} are decided"
            )


def _expect_kept(name: str, before: IntArray, after: IntArray, journey: Journey) -> None:
    if len(after) < len(before) or not np.array_equal(after[: len(before)], before):
        raise CheckFailed(
            f"in step {journey.steps} of {journey} {name} went from {before.tolist()} to {after.tolist()}; it may only "
            "grow"
        )


def _check_prompt(journey: Journey) -> None:
    request, wanted = journey.request, len(journey.ask.prompt)
    _expect_prompt("stored_tokens", request.stored_tokens[:wanted], 0, journey)
    _expect_prompt("known_tokens", request.known_tokens[:wanted], 0, journey)
    if request.prompt_len != wanted or request.canvas.start != wanted:
        raise CheckFailed(
            f"{journey} says prompt_len={request.prompt_len} and canvas.start={request.canvas.start}; both are {wanted}"
        )


def _expect_prompt(name: str, told: IntArray, start: int, journey: Journey) -> None:
    wanted = list(journey.ask.prompt[start : start + len(told)])
    if told.tolist() != wanted:
        raise CheckFailed(
            f"after {journey.steps} steps {name} of {journey} holds {told.tolist()} from position {start} on, where "
            f"the prompt has {wanted}"
        )


def _check_answer(journey: Journey) -> None:
    request, bench = journey.request, journey.bench
    params: SamplingParams = journey.ask.params
    answer, reason = journey.output, request.completion
    where = f"after {journey.steps} steps {journey}, which {'goes on' if reason is None else f'ended with {reason}'}, "
    if bench.vocabulary.mask in answer:
        raise CheckFailed(f"{where}has the mask token ({bench.vocabulary.mask}) in its answer {list(answer)}")
    if outside := [token for token in answer if not 0 <= token < bench.vocabulary.size]:
        raise CheckFailed(f"{where}answers token {outside[0]}, beyond the vocabulary of {bench.vocabulary.size}")
    stops = {*params.stop_token_ids, *(() if params.ignore_eos else bench.context.eos_token_ids)}
    if stops & set(answer):
        raise CheckFailed(f"{where}has a stop token ({min(stops & set(answer))}) in its answer {list(answer)}")
    room = min(params.max_tokens, bench.context.max_model_len - len(journey.ask.prompt))
    if len(answer) > room:
        raise CheckFailed(f"{where}answers {len(answer)} tokens where {room} are allowed")
    if reason is not None and not _is_reason(journey, reason):
        raise CheckFailed(
            f"{where}answers {len(answer)} of {params.max_tokens} tokens, and nothing says that this holds"
        )


def _is_reason(journey: Journey, reason: CompletionReason) -> bool:
    """Whether a request that nobody aborts may end for a reason, by what it shows."""
    request, params = journey.request, journey.ask.params
    end = len(journey.ask.prompt) + len(journey.output)
    behind = request.stored_tokens[end : end + 1].tolist()
    match reason:
        case CompletionReason.STOP_EOS:
            return not params.ignore_eos and bool(journey.bench.context.eos_token_ids.intersection(behind))
        case CompletionReason.STOP_TOKEN:
            return bool(set(params.stop_token_ids).intersection(behind))
        case CompletionReason.LENGTH_TOKENS:
            return len(journey.output) == params.max_tokens
        case CompletionReason.LENGTH_CONTEXT:
            return end == journey.bench.context.max_model_len
        case CompletionReason.NFE_LIMIT:
            return params.max_nfe is not None and request.nfe >= params.max_nfe
        case _:
            return reason is CompletionReason.ABORTED


CHECKS: tuple[AnyCheck, ...] = (
    check_prompt_stays,
    check_committed_text_stays,
    check_requests_end,
    check_answers_are_clean,
    check_answers_are_what_was_decided,
    check_the_refused_is_not_taken,
    check_shorter_limits_give_prefixes,
    *requests_state.CHECKS,
    *requests_pages.CHECKS,
    *requests_rows.CHECKS,
    *requests_params.CHECKS,
)
