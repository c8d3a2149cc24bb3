"""Checks of samplers: which tokens may be decided, and with which confidence."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import attrs
import numpy as np
import torch
from hypothesis import strategies as st

from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.checks import sampler_facts, sampler_purity, sampler_rules
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.oracles.sampler import distribution
from diffulex_core.testing.sampler_calls import (
    THRESHOLDS,
    Asked,
    Call,
    Group,
    any_params,
    calls,
    limited,
    refuse_differences,
    refuses_forbidden,
    told,
)
from diffulex_core.testing.subjects import SamplerSubject
from diffulex_core.types import Decision


def _refuse_tokens(call: Call, decisions: list[Decision], never: Callable[[int], bool], what: str) -> None:
    for index, decision in enumerate(decisions):
        wrong = [token for token in decision.tokens.tolist() if never(token)]
        if wrong:
            raise CheckFailed(
                f"window {index} decided the token {wrong[0]}, which is {what} (vocab_size={call.vocab_size}, "
                f"forbidden={sorted(call.forbidden)}, {told(call.asked[index].params)})."
            )


@check(SamplerSubject)
def check_sampler_decides_every_row(subject: SamplerSubject, effort: Effort) -> None:
    """Every window gets one decision with an entry for each of its rows, in order; decisions can be pickled.

    Windows without rows get one as well, and so do all windows of a step that samples nothing.

    Why: requests match decisions with what they asked for by order, and with several processes decisions travel.

    Fix: return one `Decision` for each of `batch.windows`: `positions` as the batch has them, int64 tokens, floating
    confidence and bool `accepted`. A decision class of its own stands at the top of its module.
    """

    @effort.for_all(call=calls(params=any_params, threshold=THRESHOLDS), empty=st.booleans())
    def holds(call: Call, empty: bool) -> None:
        if empty:
            call = attrs.evolve(call, asked=tuple(attrs.evolve(each, groups=()) for each in call.asked))
        for index, (decision, each) in enumerate(zip(call.decide(subject), call.asked, strict=True)):
            positions = list(range(each.start, each.start + each.rows))
            if decision.positions.tolist() != positions:
                raise CheckFailed(f"window {index} is told positions {decision.positions.tolist()}, not {positions}.")
            kinds = decision.tokens.dtype.kind, decision.confidence.dtype.kind, decision.accepted.dtype.kind
            if kinds != ("i", "f", "b"):
                raise CheckFailed(
                    f"window {index}: tokens are {decision.tokens.dtype}, confidence {decision.confidence.dtype} and "
                    f"accepted {decision.accepted.dtype}; they are int64, float32 and bool."
                )
            refuse_differences([decision], [pickle.loads(pickle.dumps(decision))], "once it was pickled")


@check(SamplerSubject, when=refuses_forbidden)
def check_sampler_never_decides_forbidden_ids(subject: SamplerSubject, effort: Effort) -> None:
    """No row is ever decided as a forbidden id, however probable the network thinks it is.

    Why: the mask token is such an id. Once it is decided as if it were text, it is part of the answer, or its block
    never ends.

    Fix: set the columns of `forbidden` to -inf before anything else reads the logits: greedy choice, draws, limits and
    confidence, at every temperature.
    """

    @effort.for_all(
        call=calls(params=any_params, forbid=True, greedy=st.booleans(), force_one=st.booleans(), threshold=THRESHOLDS)
    )
    def holds(call: Call) -> None:
        _refuse_tokens(call, call.decide(subject), call.forbidden.__contains__, "forbidden")


@check(SamplerSubject)
def check_sampler_never_decides_padding(subject: SamplerSubject, effort: Effort) -> None:
    """No row is ever decided as an id at or above `vocab_size`, and what stands in those columns changes nothing.

    Why: heads are padded so that processes can divide them. The padding holds whatever its memory held, and no
    tokenizer knows these ids.

    Fix: cut the logits at `vocab_size` (counted over all processes), or set the rest to -inf, before anything reads
    them.
    """

    @effort.for_all(
        call=calls(params=any_params, greedy=st.booleans(), threshold=THRESHOLDS),
        filler=st.sampled_from([-1e30, 1e4, float("nan"), float("inf")]),
    )
    def holds(call: Call, filler: float) -> None:
        decisions = call.decide(subject)
        _refuse_tokens(
            call, decisions, lambda token: not 0 <= token < call.vocab_size, "no id: it is padding or negative"
        )

        def filled(group: Group) -> Group:
            logits = group.logits.copy()
            logits[:, call.vocab_size :] = filler
            return attrs.evolve(group, logits=logits)

        # Whoever rolls dice differs anyway, and shall not look for padding.
        refuse_differences(decisions, call.decide(subject), "when it is asked the same again")
        other = attrs.evolve(call, asked=tuple(each.with_groups(filled) for each in call.asked)).decide(subject)
        refuse_differences(decisions, other, f"with {filler} in the columns of the padding")


@check(SamplerSubject)
def check_sampler_is_greedy_at_temperature_0(subject: SamplerSubject, effort: Effort) -> None:
    """At temperature 0, and in greedy groups, every row takes its most probable token, of equals the highest id.

    A constant added to a row changes nothing, and biases count.

    Why: greedy decoding is what users compare between machines and backends. Without one tie rule, equal logits (often
    enough in bfloat16) give answers that differ from run to run.

    Fix: take the highest id among the columns that equal the row's maximum, in the logits' own values plus
    `logit_bias`; do not compare probabilities, which round different logits to equal numbers.
    """
    biases = st.dictionaries(st.integers(0, 9), st.sampled_from([-3.5, 2.0, 40.0, float("-inf")]), max_size=2)
    cold = st.builds(SamplingParams, temperature=st.just(0), seed=st.integers(0, 9), logit_bias=biases)
    warm = st.builds(SamplingParams, temperature=st.just(1.5), seed=st.integers(0, 9), logit_bias=biases)

    def holds(call: Call, shift: int) -> None:
        decisions = call.decide(subject)
        for index, (decision, each) in enumerate(zip(decisions, call.asked, strict=True)):
            free = attrs.evolve(each.params, temperature=0)
            for row, logits in enumerate(call.exact(index)):
                best = distribution(logits.tolist(), call.forbidden, free).likeliest
                if decision.tokens[row] != best:
                    raise CheckFailed(
                        f"window {index}, row {row}: decided {decision.tokens[row]}, but the most probable token (the "
                        f"highest id of equals) is {best}; logits {logits.tolist()}, {told(each.params)}."
                    )
        shifted = attrs.evolve(
            call,
            asked=tuple(
                each.with_groups(lambda group: attrs.evolve(group, logits=group.logits + shift)) for each in call.asked
            ),
        )
        refuse_differences(decisions, shifted.decide(subject), f"with {shift} added to every logit")

    shifts = st.integers(-500, 500)
    effort.for_all(call=calls(params=cold), shift=shifts)(holds)
    effort.for_all(call=calls(params=warm, greedy=st.just(True)), shift=shifts)(holds)

    for dtype, rows, best in (
        (torch.bfloat16, [[0.0, 5.0, 1.0, 5.0], [7.0, 7.0, 7.0, -1.0]], [3, 2]),
        (torch.float32, [[8.0, 8 + 2**-20, 8.0, 0.0], [1e4, 1e4, 0.0, 1e4 + 2**-10]], [1, 3]),
    ):
        asked = Asked(groups=(Group(logits=np.array(rows)),))
        tokens = Call(asked=(asked,), vocab_size=4, columns=4, dtype=dtype).decide(subject)[0].tokens.tolist()
        if tokens != best:
            raise CheckFailed(f"of the {dtype} logits {rows} the tokens {tokens} were decided, expected {best}.")


@check(SamplerSubject)
def check_sampler_confidence_is_a_probability(subject: SamplerSubject, effort: Effort) -> None:
    """Confidence is the decided token's probability, in [0, 1], by softmax over the ids that may be chosen.

    Why: thresholds compare it, and users tune them. A confidence over padding or the mask token, or one that overflows
    with large logits, moves every threshold.

    Fix: softmax in float32 or more, whatever dtype the logits have, over the biased logits without forbidden ids and
    padding, with the row's maximum subtracted first.
    """
    params = st.builds(
        SamplingParams,
        temperature=st.sampled_from([0, 1.0]),
        seed=st.integers(0, 99),
        logit_bias=st.dictionaries(st.integers(0, 9), st.sampled_from([-3.5, 2.0]), max_size=2),
    )
    forbid = refuses_forbidden(subject) is None
    large = st.sampled_from([0, 200])
    dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])

    @effort.for_all(call=calls(params=params, forbid=forbid), lift=large, dtype=dtypes)
    def holds(call: Call, lift: int, dtype: torch.dtype) -> None:
        lifted = tuple(
            each.with_groups(lambda group: attrs.evolve(group, logits=group.logits + lift)) for each in call.asked
        )
        _compare_confidence(attrs.evolve(call, asked=lifted, dtype=dtype), subject)


@check(SamplerSubject)
def check_sampler_limits_keep_the_right_tokens(subject: SamplerSubject, effort: Effort) -> None:
    """Top-p, top-k and min-p keep exactly the tokens that they promise; others are never decided.

    Why: one token too few or too many is invisible in most answers and wrong in all. Confidence, which is taken from
    what is kept, shows it at once.

    Fix: order tokens by probability. `top_k` keeps the first k. `top_p` keeps the smallest set that exceeds it: every
    token before which at most that much was reached. `min_p` keeps those of at least this share of the most probable
    one's probability. The most probable token always stays.
    """

    @effort.for_all(call=calls(params=limited, forbid=refuses_forbidden(subject) is None), share=2.0)
    def holds(call: Call) -> None:
        _compare_confidence(call, subject)


def _compare_confidence(call: Call, subject: SamplerSubject) -> None:
    for index, (decision, each) in enumerate(zip(call.decide(subject), call.asked, strict=True)):
        for row, logits in enumerate(call.exact(index)):
            exact = distribution(logits.tolist(), call.forbidden, each.params)
            if exact.gap < 1e-4:
                continue
            token, confidence = int(decision.tokens[row]), float(decision.confidence[row])
            where = f"window {index}, row {row}, logits {logits.tolist()}, {told(each.params)}"
            if token not in exact.share:
                raise CheckFailed(f"{where}: decided {token}, but only {sorted(exact.share)} may be.")
            if not (0 <= confidence <= 1 and abs(confidence - exact.share[token]) < 2e-5):
                raise CheckFailed(
                    f"{where}: the confidence of token {token} is {confidence:.6g}; its probability among the "
                    f"{len(exact.share)} tokens that may be chosen is {exact.share[token]:.6g}."
                )


@check(SamplerSubject)
def check_sampler_accepts_more_below_a_lower_threshold(subject: SamplerSubject, effort: Effort) -> None:
    """What is accepted at one threshold is accepted at every lower one.

    Why: a threshold is the knob between speed and quality, and it has to turn one way.

    Fix: compare each row with its group's `accept_threshold` alone. Nothing else that the threshold changes may take
    an accepted row away.
    """

    @effort.for_all(
        call=calls(params=any_params, force_one=st.booleans()),
        thresholds=st.lists(st.floats(0, 1), min_size=2, max_size=4).map(sorted),
    )
    def holds(call: Call, thresholds: list[float]) -> None:
        def at(threshold: float) -> list[Decision]:
            def with_threshold(group: Group) -> Group:
                return attrs.evolve(group, threshold=threshold)

            asked = tuple(each.with_groups(with_threshold) for each in call.asked)
            return attrs.evolve(call, asked=asked).decide(subject)

        results = [at(threshold) for threshold in thresholds]
        for lower, higher, low, high in zip(results, results[1:], thresholds, thresholds[1:], strict=False):
            for index, (more, fewer) in enumerate(zip(lower, higher, strict=True)):
                lost = np.flatnonzero(fewer.accepted & ~more.accepted)
                if len(lost):
                    raise CheckFailed(
                        f"window {index}, row {lost[0]} is accepted at threshold {high:g} and not at {low:g}."
                    )


CHECKS: tuple[AnyCheck, ...] = (
    check_sampler_decides_every_row,
    check_sampler_never_decides_forbidden_ids,
    check_sampler_never_decides_padding,
    check_sampler_is_greedy_at_temperature_0,
    check_sampler_confidence_is_a_probability,
    check_sampler_limits_keep_the_right_tokens,
    check_sampler_accepts_more_below_a_lower_threshold,
    *sampler_purity.CHECKS,
    *sampler_rules.CHECKS,
    *sampler_facts.CHECKS,
)
