"""Checks of the shared sampling rule: who is accepted, what is drawn, and what is told besides."""

from __future__ import annotations

import math

import attrs
import numpy as np
from hypothesis import strategies as st

from diffulex_core.pattern import IntArray
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.oracles import sampler as oracle
from diffulex_core.testing.sampler_calls import Asked, Call, Group, calls, refuses_forbidden, told
from diffulex_core.testing.subjects import SamplerSubject
from diffulex_core.types import Decision

CERTAIN = 40.0
"""A logit beside which zeros have no probability that float32 can tell from none."""

ROWS = 2000
"""Draws of which frequencies are taken."""


def _has_its_own_rule(subject: SamplerSubject) -> str | None:
    """Decisions of a class of their own are read by requests that know it, by a rule of their own."""
    call = Call(asked=(Asked(groups=(Group(logits=np.zeros((1, 5))),)),), vocab_size=5, columns=5)
    try:
        [decision] = call.decide(subject)
    except Exception:  # noqa: BLE001 - code under test may raise anything, and then the check shall say so
        return None
    own = type(decision)
    return None if own is Decision else f"its decisions are of the class {own.__name__}, which has a rule of its own"


@check(SamplerSubject, when=_has_its_own_rule)
def check_sampler_accept_rule(subject: SamplerSubject, effort: Effort) -> None:
    """A row is accepted when its confidence is strictly above its group's threshold.

    A group that accepts none and forces one accepts its most confident row, the first of equals.

    Why: blocks rely on it. With `>=` a threshold of 1 is not the end of accepting, and without the forced row a block
    that is never confident enough never ends.

    Fix: compare with `>`, group by group, and force one only in groups that say so and accept nothing. A sampler with
    a rule of its own returns decisions of its own subclass of `Decision`; then this check leaves it alone.
    """

    @effort.for_all(
        call=calls(
            params=st.builds(SamplingParams, temperature=st.sampled_from([0, 1.0]), seed=st.integers(0, 99)),
            threshold=st.sampled_from([0.0, 0.04, 0.1234, 0.4321, 0.8765, 1.0]), force_one=st.booleans(),
        ),
        twins=st.booleans(),
    )  # fmt: skip
    def holds(call: Call, twins: bool) -> None:
        if twins:
            call = attrs.evolve(
                call, asked=tuple(attrs.evolve(each, groups=tuple(map(_twins, each.groups))) for each in call.asked)
            )
        _compare_accepted(call, subject)
        _compare_accepted(_with_close_thresholds(call, subject), subject)

    sure = np.zeros((3, 5))
    sure[:, 2] = 4 * CERTAIN
    for forced in (False, True):
        groups = (Group(logits=sure, threshold=1.0, force_one=forced), Group(logits=sure, threshold=0.5))
        _compare_accepted(Call(asked=(Asked(groups=groups),), vocab_size=5, columns=5), subject)


def _with_close_thresholds(call: Call, subject: SamplerSubject) -> Call:
    """The call with thresholds just below, and just above, how sure the sampler is of a group's first row."""
    asked = list[Asked]()
    for decision, each in zip(call.decide(subject), call.asked, strict=True):
        rows, groups = iter(decision.confidence.tolist()), list[Group]()
        for number, group in enumerate(each.groups):
            first, *_ = [next(rows) for _ in group.logits]
            groups.append(attrs.evolve(group, threshold=first * (1 + (-1) ** number * 1e-4)))
        asked.append(attrs.evolve(each, groups=tuple(groups)))
    return attrs.evolve(call, asked=tuple(asked))


def _twins(group: Group) -> Group:
    """Rows that are equally confident."""
    return attrs.evolve(group, logits=group.logits[:1].repeat(3, axis=0))


def _compare_accepted(call: Call, subject: SamplerSubject) -> None:
    for index, (decision, each) in enumerate(zip(call.decide(subject), call.asked, strict=True)):
        owners = [number for number, group in enumerate(each.groups) for _ in group.logits]
        thresholds = [group.threshold for group in each.groups]
        distance = np.abs(decision.confidence.astype(np.float64) - [thresholds[owner] for owner in owners])
        if ((distance > 0) & (distance < 1e-6)).any():
            continue  # rounding decides
        expected = oracle.accepted(decision.confidence, owners, thresholds, [group.force_one for group in each.groups])
        if not np.array_equal(decision.accepted, expected):
            raise CheckFailed(
                f"window {index} accepts {decision.accepted.tolist()}, expected {expected.tolist()}: confidence "
                f"{decision.confidence.tolist()}, groups {owners}, thresholds {thresholds}, "
                f"force_one {[group.force_one for group in each.groups]}."
            )


@check(SamplerSubject, when=_has_its_own_rule)
def check_sampler_heeds_the_temperature(subject: SamplerSubject, effort: Effort) -> None:
    """Confidence is of the tempered distribution, limits apply to it, and greedy groups are not tempered.

    Why: users set the temperature. A sampler that forgets it, or that tempers after it has limited, still gives
    plausible text.

    Fix: divide the biased logits by the temperature where it is above 0 and the group is not greedy, then limit, then
    take softmax.
    """
    params = st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.5, 0.7, 1.5, 3.0]),
        seed=st.integers(0, 99),
    )
    limits = st.sampled_from([{}, {"top_k": 4}, {"min_p": 0.21}, {"top_p": 0.77}])

    @effort.for_all(
        call=calls(
            params=st.builds(lambda params, limit: attrs.evolve(params, **limit), params, limits),
            forbid=True,
            greedy=st.booleans(),
        )
    )
    def holds(call: Call) -> None:
        for index, (decision, each) in enumerate(zip(call.decide(subject), call.asked, strict=True)):
            for row, (logits, group) in enumerate(zip(call.exact(index), each.owners, strict=True)):
                heeded = attrs.evolve(each.params, temperature=0) if group.greedy else each.params
                exact = oracle.distribution(logits.tolist(), call.forbidden, heeded)
                if exact.gap > 1e-4:
                    expected = exact.share.get(int(decision.tokens[row]), 0.0)
                    _compare(
                        decision.confidence[row], expected, f"window {index}, row {row}, {told(heeded)}: confidence"
                    )


@check(SamplerSubject, when=_has_its_own_rule)
def check_sampler_draws_follow_the_distribution(subject: SamplerSubject, effort: Effort) -> None:
    """Above temperature 0 tokens are drawn as often as they are probable, and never where they cannot be chosen.

    Why: sampling that is off by a little gives text that reads well and is not the model's.

    Fix: draw from the distribution that is left after bias, temperature and limits. Numbers in [0, 1) against the
    cumulative distribution need `right=True` in a search, so that a token without probability is never met.
    """

    @effort.for_all(
        temperature=st.sampled_from([0.5, 1.0, 2.0]),
        top_k=st.sampled_from([None, 3]),
        seed=st.integers(0, 2**62),
        logits=st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 1.0, 2.0]), min_size=6, max_size=6, unique=True),
        share=0.3,
    )
    def holds(temperature: float, top_k: int | None, seed: int, logits: list[float]) -> None:
        params = SamplingParams(temperature=temperature, top_k=top_k, seed=seed, logit_bias={2: -math.inf})
        [decision] = _many(logits, params).decide(subject)
        expected = oracle.distribution(logits, frozenset(), params).share
        counts = np.bincount(decision.tokens, minlength=len(logits))
        strange = [token for token in np.flatnonzero(counts).tolist() if token not in expected]
        if strange:
            raise CheckFailed(f"{told(params)} drew the token {strange[0]}, but only {sorted(expected)} may be drawn.")
        chi2 = sum((counts[token] - ROWS * share) ** 2 / (ROWS * share) for token, share in expected.items())
        # With 4 degrees of freedom an honest sampler is beyond 60 once in 3e11 cases.
        if chi2 > 60:
            seen = {token: round(float(counts[token]) / ROWS, 3) for token in sorted(expected)}
            right = {token: round(expected[token], 3) for token in sorted(expected)}
            raise CheckFailed(
                f"{told(params)}: tokens are drawn with frequencies {seen}, but are as probable as {right}."
            )


@check(SamplerSubject, when=_has_its_own_rule)
def check_sampler_draws_are_independent(subject: SamplerSubject, effort: Effort) -> None:
    """Draws of other positions, of other steps and with other seeds have nothing to do with each other.

    Why: a sampler that forgets one of the three draws the same token all over a block, in every step of a request, or
    for every user.

    Fix: mix seed, `Window.draw` and position into every random number (`diffulex_core.sampling.rng.uniform` does), by a
    mixing that depends on all bits of each; sums such as seed + position make neighbours alike.
    """
    logits = [0.0, 0.3, -0.2, 0.5]

    # Counters of a byte begin anew after 256 steps.
    @effort.for_all(seed=st.integers(0, 2**62), draw=st.integers(0, 1000), apart=st.sampled_from([256, 1]), share=0.2)
    def holds(seed: int, draw: int, apart: int) -> None:
        def drawn(seed: int, draw: int) -> IntArray:
            call = _many(logits, SamplingParams(temperature=1.0, seed=seed), draw)
            tokens: IntArray = call.decide(subject)[0].tokens
            return tokens

        base, step, other = drawn(seed, draw), drawn(seed, draw + apart), drawn(seed + 1, draw)
        for what, one, two in (
            ("neighbouring positions", base[:-1], base[1:]),
            (f"two steps of a request, {apart} apart,", base, step),
            ("requests with the seeds n and n + 1", base, other),
            (f"a step at one position and one {apart} later at the one before", base[1:], step[:-1]),
            ("a request at one position and the next seed at the one before", base[1:], other[:-1]),
        ):
            table = np.zeros((4, 4))
            np.add.at(table, (one, two), 1)
            by_chance = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
            chi2 = float(((table - by_chance) ** 2 / np.maximum(by_chance, 1e-9)).sum())
            # With 9 degrees of freedom independent draws are beyond 80 once in 6e12 cases.
            if chi2 > 80 or (table > 0).sum() < 16:
                raise CheckFailed(
                    f"draws at {what} depend on each other: pairs of tokens were drawn {table.astype(int).tolist()} "
                    f"times, where chance gives about {by_chance.round().astype(int).tolist()} (seed {seed}, "
                    f"draw {draw})."
                )


def _many(logits: list[float], params: SamplingParams, draw: int = 0) -> Call:
    """One request that draws from one distribution at many positions."""
    rows = np.array(logits)[None].repeat(ROWS, axis=0)
    asked = Asked(groups=(Group(logits=rows),), params=params, draw=draw)
    return Call(asked=(asked,), vocab_size=len(logits), columns=len(logits))


@check(SamplerSubject, when=_has_its_own_rule)
def check_sampler_measures(subject: SamplerSubject, effort: Effort) -> None:
    """Margin and entropy, where a request or a group asks for them, are what they are called.

    Why: strategies rank positions by them, and a ranking that is slightly wrong decides in the wrong order.

    Fix: "margin" is the lead of the most probable token over the second, "neg_entropy" exp of the negative entropy in
    nats, "entropy" the negative entropy itself; each over the distribution that confidence is taken from. What a group
    asks for outranks the request.
    """

    @effort.for_all(
        call=calls(
            params=st.builds(
                SamplingParams,
                temperature=st.just(0),
                confidence=st.sampled_from(["prob", "margin", "neg_entropy"]),
            ),
            forbid=True,
            measure=st.sampled_from([None, None, "prob", "margin", "neg_entropy", "entropy"]),
        )
    )
    def holds(call: Call) -> None:
        for index, (decision, each) in enumerate(zip(call.decide(subject), call.asked, strict=True)):
            for row, (logits, group) in enumerate(zip(call.exact(index), each.owners, strict=True)):
                shares = oracle.distribution(logits.tolist(), call.forbidden, each.params).share
                kind = group.measure or each.params.confidence
                expected = {
                    "prob": shares[int(decision.tokens[row])],
                    "margin": oracle.margin(shares),
                    "neg_entropy": math.exp(-oracle.entropy(shares)),
                    "entropy": -oracle.entropy(shares),
                }[kind]
                _compare(decision.confidence[row], expected, f"window {index}, row {row}, logits {logits}: {kind}")


@check(SamplerSubject, when=_has_its_own_rule)
def check_sampler_clean_confidence(subject: SamplerSubject, effort: Effort) -> None:
    """Groups that ask for clean confidence get it from the distribution before temperature and limits.

    Why: with tempered confidence a cold request accepts everything, and with limits a single kept token is certain.
    Strategies that compare confidence across temperatures ask for the clean one.

    Fix: choose the token from the tempered and limited distribution, and take confidence from the biased one where
    `clean_confidence` says so.
    """
    params = st.builds(
        SamplingParams,
        temperature=st.sampled_from([0, 0.5, 1.0, 2.0]),
        top_k=st.sampled_from([None, 2]),
        seed=st.integers(0, 99),
        logit_bias=st.sampled_from([{}, {0: 2.0}]),
    )

    @effort.for_all(call=calls(params=params, forbid=True, clean_confidence=st.booleans()))
    def holds(call: Call) -> None:
        for index, (decision, each) in enumerate(zip(call.decide(subject), call.asked, strict=True)):
            for row, (logits, group) in enumerate(zip(call.exact(index), each.owners, strict=True)):
                clean = attrs.evolve(each.params, temperature=0, top_k=None)
                exact = oracle.distribution(
                    logits.tolist(), call.forbidden, clean if group.clean_confidence else each.params
                )
                if exact.gap > 1e-4:
                    expected = exact.share.get(int(decision.tokens[row]), 0.0)
                    where = f"window {index}, row {row}, clean_confidence={group.clean_confidence}, {told(each.params)}"
                    _compare(decision.confidence[row], expected, f"{where}: confidence")


@check(SamplerSubject, when=_has_its_own_rule, level="recommended")
def check_sampler_answers_questions(subject: SamplerSubject, effort: Effort) -> None:
    """Alternatives, watched tokens and discouraged tokens are answered as groups ask.

    Why: editing and merging strategies decide by them: which tokens come next in probability, and how probable the
    token that stands there is.

    Fix: lower a discouraged token's logit by the penalty first of all. Alternatives and watched probabilities are of
    the distribution before temperature and limits; where a group says `watched_raw`, of the network's own, which
    nothing lowers and forbidden ids belong to. A sampler that no strategy asks may leave this out.
    """

    params = st.builds(SamplingParams, temperature=st.sampled_from([0, 2.0]), seed=st.just(1))

    @effort.for_all(call=calls(params=params, forbid=True), seed=st.integers(0, 9999))
    def holds(call: Call, seed: int) -> None:
        random = np.random.default_rng(seed)

        def asking(group: Group) -> Group:
            rows, raw = len(group.logits), bool(random.random() < 0.4)
            return attrs.evolve(
                group,
                alternatives=0 if raw else int(random.integers(0, 3)),
                watched=random.integers(-1, call.vocab_size, rows) if random.random() < 0.7 else None,
                discouraged=random.integers(-1, call.vocab_size, rows) if random.random() < 0.5 else None,
                penalty=float(random.choice([0.5, 3.0])),
                watched_raw=raw,
            )

        asked = tuple(attrs.evolve(each, groups=tuple(map(asking, each.groups))) for each in call.asked)
        call = attrs.evolve(call, asked=asked)
        for index, (decision, each) in enumerate(zip(call.decide(subject), call.asked, strict=True)):
            at = 0
            for group in each.groups:
                for row in range(len(group.logits)):
                    _compare_answers(call, index, at, group, row, decision)
                    at += 1


def _compare_answers(call: Call, index: int, at: int, group: Group, row: int, decision: Decision) -> None:
    where = f"window {index}, row {at}"
    raw = dict(enumerate(call.exact(index)[at].tolist()))
    scores = {token: score for token, score in raw.items() if token not in call.forbidden}
    discouraged = -1 if group.discouraged is None else int(group.discouraged[row])
    if discouraged in scores:
        scores[discouraged] -= group.penalty
    shares = oracle.softmax(scores)
    ranked = sorted(shares, key=lambda token: (-shares[token], -token))
    if call.asked[index].params.temperature == 0 and int(decision.tokens[at]) != ranked[0]:
        raise CheckFailed(f"{where}: decided {decision.tokens[at]} with {discouraged} discouraged, not {ranked[0]}.")
    if group.alternatives:
        wanted = ranked[: group.alternatives]
        if decision.alternatives is None or decision.alternatives.tokens[at, : len(wanted)].tolist() != wanted:
            raise CheckFailed(f"{where}: the most probable tokens are {wanted}, told {decision.alternatives}.")
        for number, token in enumerate(wanted):
            _compare(decision.alternatives.probabilities[at, number], shares[token], f"{where}: alternative {number}")
    watched = -1 if group.watched is None else int(group.watched[row])
    if watched >= 0:
        expected = (oracle.softmax(raw) if group.watched_raw else shares).get(watched, 0.0)
        if decision.watched is None:
            raise CheckFailed(f"{where}: token {watched} is watched, and nothing is told of it.")
        _compare(decision.watched[at], expected, f"{where}: token {watched}, watched (raw: {group.watched_raw})")
    elif decision.watched is not None:
        _compare(decision.watched[at], 0.0, f"{where}: nothing watched")


@check(SamplerSubject, level="recommended")
def check_sampler_reports_log_probabilities(subject: SamplerSubject, effort: Effort) -> None:
    """Requests with `logprobs` get the chosen token's log probability and the most probable ones, before temperature.

    Requests without get none.

    Why: users read them in results, and the engine checks nothing of them.

    Fix: see `Decision.logprobs`. A strategy whose sampler tells none says `logprobs=False`; then declare this check in
    `expected_failures`.
    """
    params = st.builds(
        SamplingParams,
        temperature=st.sampled_from([0, 1.0, 2.0]),
        seed=st.integers(0, 99),
        logprobs=st.sampled_from([None, 0, 2]),
        top_k=st.sampled_from([None, 1]),
    )

    @effort.for_all(call=calls(params=params, forbid=refuses_forbidden(subject) is None))
    def holds(call: Call) -> None:
        for index, (decision, each) in enumerate(zip(call.decide(subject), call.asked, strict=True)):
            report, wanted = decision.logprobs, each.params.logprobs
            if wanted is None or report is None:
                if (wanted is None) != (report is None):
                    raise CheckFailed(f"window {index} asks for logprobs={wanted}, and was told {report}.")
                continue
            for row, logits in enumerate(call.exact(index).tolist()):
                shares = oracle.softmax(oracle.scores_of(logits, call.forbidden, each.params))
                ranked = sorted(shares, key=lambda token: (-shares[token], -token))[:wanted]
                where = f"window {index}, row {row}, logits {logits}: log probability"
                _compare(
                    report.chosen[row], math.log(shares[int(decision.tokens[row])]), f"{where} of the chosen token"
                )
                # Where fewer tokens are possible than asked for, the rest has no probability.
                if report.tokens.shape[1] != wanted or report.tokens[row, : len(ranked)].tolist() != ranked:
                    raise CheckFailed(f"{where} is told of {report.tokens[row].tolist()}; most probable are {ranked}.")
                for number, token in enumerate(ranked):
                    _compare(report.most[row, number], math.log(shares[token]), f"{where} of {token}")


def _compare(told: float, expected: float, what: str) -> None:
    if not abs(float(told) - expected) < 2e-5 * max(1.0, abs(expected)):
        raise CheckFailed(f"{what} is {float(told):.6g}, expected {expected:.6g}.")


CHECKS: tuple[AnyCheck, ...] = (
    check_sampler_accept_rule,
    check_sampler_heeds_the_temperature,
    check_sampler_draws_follow_the_distribution,
    check_sampler_draws_are_independent,
    check_sampler_measures,
    check_sampler_clean_confidence,
    check_sampler_answers_questions,
    check_sampler_reports_log_probabilities,
)
