"""Checks of samplers that decide rows by their facts, so that logits need not exist."""

from __future__ import annotations

import attrs
import numpy as np
import torch
from hypothesis import assume, strategies as st

from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.sampling.facts import SelectingSampler
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.oracles.facts import facts
from diffulex_core.testing.oracles.sampler import distribution
from diffulex_core.testing.sampler_calls import (
    Call,
    calls,
    refuse_differences,
    refuses_company,
    refuses_forbidden,
)
from diffulex_core.testing.subjects import SamplerSubject
from diffulex_core.testing.thread_group import ThreadGroup
from diffulex_core.types import Decision

SECONDS = 20.0
THRESHOLDS = st.sampled_from([0.1234, 0.4321, 0.8765])
"""None that a confidence meets exactly: rounding may decide there."""

_PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0.5, 1.5]),
    seed=st.integers(0, 2**40),
    top_k=st.sampled_from([3, None, 5, 9, 70]),
    min_p=st.sampled_from([0, 0, 0.21]),
    top_p=st.sampled_from([1, 1, 1, 0.43]),
    logprobs=st.sampled_from([None, None, 0, 3]),
    confidence=st.sampled_from(["prob", "margin", "neg_entropy"]),
    logit_bias=st.sampled_from([{}, {}, {}, {1: 2.0}]),
)


def _reads_logits_only(subject: SamplerSubject) -> str | None:
    try:
        made = subject.factory(vocab_size=5, forbidden=frozenset(), tp=ALONE)
    except Exception:  # noqa: BLE001 - code under test may raise anything; other checks show it
        return "it cannot be made without forbidden ids"
    return None if isinstance(made, SelectingSampler) else "it is no SelectingSampler"


@check(SamplerSubject, when=_reads_logits_only)
def check_sampler_decides_by_facts_as_by_logits(subject: SamplerSubject, effort: Effort) -> None:
    """Rows that facts suffice for are decided by them as by their logits, beside others; so is all that is asked.

    Confidence, alternatives, watched tokens and log probabilities are the same too, also where processes divide the
    vocabulary.

    Why: a kernel that searches the head's logits while it computes them keeps a few numbers of each row. Whether a row
    takes that way depends on the device and on its neighbours, and no answer may.

    Fix: see `sampling.facts`. `selectable` says False for rows that the facts do not suffice for; `wanted` names all
    that `score_facts` reads, for the rows of its batch in their order.
    """

    @effort.for_all(
        call=calls(
            params=_PARAMS, forbid=refuses_forbidden(subject) is None, threshold=THRESHOLDS,
            greedy=st.booleans(), clean_confidence=st.booleans(), alternatives=st.sampled_from([0, 0, 3]),
            measure=st.sampled_from([None, None, "entropy"]),
            watched_raw=st.booleans(), penalty=st.sampled_from([0.0, 1.5, 12.0]),
        ),
        size=st.just(1) if refuses_company(subject) is not None else st.sampled_from([1, 1, 2]),
        asks=st.booleans(), seed=st.integers(0, 99),
        share=10.0,
    )  # fmt: skip
    def holds(call: Call, size: int, asks: bool, seed: int) -> None:
        call = _asking(call, seed) if asks else call
        for index, each in enumerate(call.asked):
            # Where only so many are kept, the order of ids decides among equals.
            for row in call.exact(index).tolist() if each.params.min_p > 0 or each.params.top_p < 1 else ():
                assume(distribution(row, call.forbidden, each.params).gap > 1e-4)
        found = _by_facts(call, subject, ALONE) if size == 1 else _divided(call, subject, size)
        refuse_differences(
            [_told(each) for each in call.decide(subject)],
            [_told(each) for each in found],
            f"by facts, with {size} processes (here by logits)",
        )


def _divided(call: Call, subject: SamplerSubject, size: int) -> list[Decision]:
    first, *others = ThreadGroup(size, seconds=SECONDS).run(lambda tp: _by_facts(call, subject, tp))
    for rank, other in enumerate(others, start=1):
        refuse_differences(first, other, f"by facts on rank {rank} of {size} (here on rank 0)")
    return first


def _by_facts(call: Call, subject: SamplerSubject, tp: Communicator) -> list[Decision]:
    """What one process decides: rows that facts suffice for by facts, the others by their logits."""
    sampler, batch, logits = call.make(subject, tp), call.batch, call.logits
    assert isinstance(sampler, SelectingSampler)
    missing = torch.full((len(logits), -logits.shape[1] % tp.size), torch.nan)
    held = torch.cat((logits, missing), dim=1).chunk(tp.size, dim=1)[tp.rank]
    with torch.inference_mode():
        able = sampler.selectable(batch)
        if able.shape != (len(logits),) or able.dtype != np.bool_:
            raise CheckFailed(f"`selectable` says {able!r} of {len(logits)} rows; expected is a flag for each.")
        parts = []
        if able.any():
            part = batch.at(np.flatnonzero(able))
            told = facts(held[torch.from_numpy(able)], sampler.wanted(held.shape[1], part))
            parts.append((able, sampler.score_facts(told, held.shape[1], part)))
        if not able.all():
            rest = held[torch.from_numpy(~able)]
            parts.append((~able, sampler.score(rest, batch.at(np.flatnonzero(~able)))))
        lines = {len(scored) for _, scored in parts}
        if len(lines) != 1:
            raise CheckFailed(
                f"rows decided by facts and by logits come with {lines} facts each, which cannot be joined."
            )
        scored = torch.zeros(lines.pop(), len(logits), dtype=torch.float64)
        for which, each in parts:
            scored[:, torch.from_numpy(which)] = each.double()
        return call.checked(sampler.decide(scored, batch))


def _asking(call: Call, seed: int) -> Call:
    """The same call, in which groups name tokens that are discouraged and watched."""
    random = np.random.default_rng(seed)

    def named(rows: int) -> np.typing.NDArray[np.int64]:
        return random.integers(-1, call.vocab_size, rows)

    return attrs.evolve(
        call,
        asked=tuple(
            each.with_groups(
                lambda group: attrs.evolve(
                    group, discouraged=named(len(group.logits)), watched=named(len(group.logits))
                )
            )
            for each in call.asked
        ),
    )


def _told(decision: Decision) -> Decision:
    """The decision, with one name for all tokens that have no probability."""
    other, report = decision.alternatives, decision.logprobs
    return attrs.evolve(
        decision,
        alternatives=other and attrs.evolve(other, tokens=np.where(other.probabilities > 0, other.tokens, -1)),
        logprobs=report and attrs.evolve(report, tokens=np.where(np.isfinite(report.most), report.tokens, -1)),
    )


CHECKS: tuple[AnyCheck, ...] = (check_sampler_decides_by_facts_as_by_logits,)
