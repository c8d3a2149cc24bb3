"""Checks of samplers: that a row's decision depends on that row and its request, and on nothing else."""

from __future__ import annotations

import copy
import random
from itertools import pairwise

import attrs
import numpy as np
import torch
from hypothesis import assume, strategies as st

from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.protocols import PartwiseSampler
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.oracles.sampler import difference, distribution
from diffulex_core.testing.sampler_calls import (
    THRESHOLDS,
    Call,
    any_params,
    calls,
    limited,
    refuse_differences,
    refuses_company,
    refuses_forbidden,
)
from diffulex_core.testing.subjects import SamplerSubject
from diffulex_core.testing.thread_group import ThreadGroup
from diffulex_core.types import Decision

SECONDS = 20.0
"""How long a rank waits for the others before the check fails."""


def _has_no_parts(subject: SamplerSubject) -> str | None:
    sampler = subject.factory(vocab_size=5, forbidden=frozenset(), tp=ALONE)
    return None if isinstance(sampler, PartwiseSampler) else "it has no `score` and `decide`, so its rows come at once"


@check(SamplerSubject)
def check_sampler_batch_does_not_matter(subject: SamplerSubject, effort: Effort) -> None:
    """A request gets the same decisions alone, beside others, in another order and under another id.

    Why: users who give a seed expect the same answer again, whoever else is being served. A generator that requests
    share, or one row's maximum that scales another's, breaks that.

    Fix: derive every random number from the request's seed, the window's `draw` and the row's position, and from
    nothing else: not from row numbers, request ids or how often the sampler was called.
    """

    @effort.for_all(call=calls(params=any_params, threshold=THRESHOLDS, force_one=st.booleans()))
    def holds(call: Call) -> None:
        together = call.decide(subject)
        turned = attrs.evolve(call, asked=call.asked[::-1]).decide(subject)[::-1]
        refuse_differences(together, turned, "with the windows in reverse order")
        for index, each in enumerate(call.asked):
            other = attrs.evolve(each, request_id=each.request_id + 1000)
            alone = attrs.evolve(call, asked=(other,)).decide(subject)
            refuse_differences([together[index]], alone, f"alone and under another request id (window {index})")
        twice = attrs.evolve(call, asked=call.asked + tuple(attrs.evolve(each, request_id=99) for each in call.asked))
        refuse_differences(together, twice.decide(subject)[len(together) :], "beside a request with the same seed")


@check(SamplerSubject)
def check_sampler_keeps_nothing_between_calls(subject: SamplerSubject, effort: Effort) -> None:
    """A sampler's answers do not depend on earlier calls, on other samplers, or on the process's random numbers.

    Earlier answers stay as they are, and the process's generators are left alone.

    Why: a step may be run again after a preemption, engines live side by side, and several processes must decide alike.

    Fix: keep nothing but the constructor's arguments, on the instance; return new arrays; draw from counters instead
    of generators.
    """

    def keeps_nothing(call: Call, other: Call) -> None:
        before = _generators()
        sampler = call.make(subject)
        first = call.ask(sampler)
        kept = copy.deepcopy(first)
        other.ask(other.make(subject))
        refuse_differences(first, call.ask(sampler), "once another sampler was made")
        mirrored = [
            each.with_groups(lambda group: attrs.evolve(group, logits=group.logits[:, ::-1])) for each in call.asked
        ]
        attrs.evolve(call, asked=tuple(mirrored)).ask(sampler)
        # As many rows and requests, which ask for something else.
        warmer = tuple(
            attrs.evolve(each, params=attrs.evolve(each.params, temperature=each.params.temperature + 0.5))
            for each in call.asked
        )
        tempered = attrs.evolve(call, asked=warmer)
        refuse_differences(tempered.decide(subject), tempered.ask(sampler), "after a call of other parameters")
        refuse_differences(kept, first, "as it was returned, and after another call")
        refuse_differences(first, call.ask(sampler), "after another call")
        if _generators() != before:
            raise CheckFailed("a call moved a random generator of the process (torch, numpy or random).")
        torch.manual_seed(2)
        refuse_differences(first, call.decide(subject), "with another seed of torch's own generator")

    @effort.for_all(
        call=calls(params=any_params, threshold=THRESHOLDS, force_one=st.booleans()),
        other=calls(params=any_params),
        share=0.5,
    )
    def holds(call: Call, other: Call) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            keeps_nothing(call, other)


@check(SamplerSubject)
def check_sampler_leaves_its_arguments_alone(subject: SamplerSubject, effort: Effort) -> None:
    """The logits and the batch are the same after a call, also where the logits are part of a larger tensor.

    Why: the runner still needs both: beliefs, log probabilities and the requests' own rules read them.

    Fix: copy the logits before writing to them. `.float()` and `.to(torch.float32)` return the tensor itself when it
    is float32 already.
    """

    @effort.for_all(call=calls(params=any_params, forbid=refuses_forbidden(subject) is None), wide=st.booleans())
    def holds(call: Call, wide: bool) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            given = attrs.evolve(call, dtype=dtype)
            store = given.logits
            if wide:
                store = torch.cat((store, torch.full((len(store), 3), 7.0, dtype=dtype)), dim=1)
            logits, before, batch = store[:, : call.columns], store.clone(), given.batch
            with torch.inference_mode():
                decisions = given.checked(list(given.make(subject).sample(logits, batch)))
            if not torch.equal(store, before):
                raise CheckFailed(f"a call changed its {dtype} logits (vocab_size={call.vocab_size}).")
            if found := difference(batch, given.batch):
                raise CheckFailed(f"a call changed its batch: {found}.")
            refuse_differences(decisions, given.decide(subject), "from logits that are part of a larger tensor")


@check(SamplerSubject)
def check_sampler_names_rows_that_are_not_finite(subject: SamplerSubject, effort: Effort) -> None:
    """A window with a row of NaN or infinity, or without any possible token, says `finite=False` and accepts nothing.

    All other windows are decided as ever.

    Why: the engine ends the request that such logits belong to, with an error that names it. A sampler that raises
    ends everybody's, and one that is silent writes nonsense into an answer.

    Fix: test each row (the logarithm of its sum of exponentials is finite exactly then) and set `finite` of the window
    that owns it. Let no sum, sort or maximum go over rows of other windows.
    """
    faults = {"NaN": np.nan, "infinity": np.inf, "minus infinity everywhere": -np.inf}

    @effort.for_all(
        call=calls(params=any_params, threshold=THRESHOLDS, force_one=st.booleans()),
        fault=st.sampled_from(sorted(faults)),
        at=st.integers(0, 10**6),
    )
    def holds(call: Call, fault: str, at: int) -> None:
        healthy = call.decide(subject)
        if not all(decision.finite for decision in healthy):
            raise CheckFailed("finite=False, although all logits are finite.")
        owners = [index for index, each in enumerate(call.asked) if each.rows]
        index = owners[at % len(owners)]
        groups = list(call.asked[index].groups)
        which = at % len(groups)
        logits = groups[which].logits.copy()
        logits[at % len(logits), slice(None) if fault.startswith("minus") else at % call.vocab_size] = faults[fault]
        groups[which] = attrs.evolve(groups[which], logits=logits)
        asked = [*call.asked]
        asked[index] = attrs.evolve(asked[index], groups=tuple(groups))
        decisions = attrs.evolve(call, asked=tuple(asked)).decide(subject)
        if decisions[index].finite or decisions[index].accepted.any():
            raise CheckFailed(
                f"window {index} has a row with {fault}, but finite={decisions[index].finite} and "
                f"{decisions[index].accepted.sum()} rows are accepted."
            )
        others = [each for each in range(len(asked)) if each != index]
        refuse_differences(
            [healthy[each] for each in others], [decisions[each] for each in others], f"beside a row with {fault}"
        )


@check(SamplerSubject, when=_has_no_parts)
def check_sampler_parts_are_the_whole(subject: SamplerSubject, effort: Effort) -> None:
    """Rows that are scored in parts are decided as if they had been scored at once.

    Why: with `max_logits_tokens` the runner never holds all logits together, and users may set it to save memory.

    Fix: `score` may look at one row at a time only; whatever concerns a group belongs into `decide`.
    """

    @effort.for_all(
        call=calls(params=any_params, threshold=THRESHOLDS, force_one=st.booleans()),
        cuts=st.lists(st.integers(1, 60), max_size=3),
    )
    def holds(call: Call, cuts: list[int]) -> None:
        sampler, logits, batch = call.make(subject), call.logits, call.batch
        assert isinstance(sampler, PartwiseSampler)
        bounds = [0, *sorted({cut for cut in cuts if cut < len(logits)}), len(logits)]
        with torch.inference_mode():
            parts = [sampler.score(logits[begin:end], batch.part(begin, end)) for begin, end in pairwise(bounds)]
            decisions = call.checked(sampler.decide(torch.cat(parts, dim=1), batch))
        refuse_differences(call.decide(subject), decisions, f"scored in parts that are cut at rows {bounds[1:-1]}")


@check(SamplerSubject, when=refuses_company)
def check_sampler_shares_agree(subject: SamplerSubject, effort: Effort) -> None:
    """Processes that divide the vocabulary all decide alike, and as one process decides that holds all of it.

    Why: with tensor parallelism every process has its own columns only. If they decide differently, their requests
    drift apart and the engine computes nonsense or hangs.

    Fix: column `c` of rank `r` is the id `r * columns + c`, and ids from `vocab_size` on mean nothing there. Settle
    maxima, sums, limits and draws through `tp`, the same calls in the same order on every rank. A sampler for one
    process only raises ConfigError when it is made with a `tp` of more.
    """
    free = st.builds(SamplingParams, temperature=st.sampled_from([0, 0.5, 1.5]), seed=st.integers(0, 2**40))

    @effort.for_all(
        call=calls(
            params=st.one_of(limited, free), forbid=refuses_forbidden(subject) is None, force_one=st.booleans(),
            threshold=THRESHOLDS,
        ),
        size=st.sampled_from([2, 3]),
    )  # fmt: skip
    def holds(call: Call, size: int) -> None:
        for index, each in enumerate(call.asked):
            for row in call.exact(index).tolist():
                assume(distribution(row, call.forbidden, each.params).gap > 1e-4)
        logits = call.logits
        missing = -logits.shape[1] % size
        held = torch.cat((logits, torch.full((len(logits), missing), torch.nan)), dim=1).chunk(size, dim=1)

        def decide(tp: Communicator) -> list[Decision]:
            with torch.inference_mode():
                return call.checked(list(call.make(subject, tp).sample(held[tp.rank].clone(), call.batch)))

        first, *others = ThreadGroup(size, seconds=SECONDS).run(decide)
        for rank, other in enumerate(others, start=1):
            refuse_differences(first, other, f"on rank {rank} of {size} (here on rank 0)")
        refuse_differences(call.decide(subject), first, f"by {size} processes that divide the vocabulary (here by one)")


def _generators() -> tuple[object, ...]:
    """The state of the process's own generators."""
    return bytes(torch.get_rng_state().tolist()), str(np.random.get_state(legacy=False)), random.getstate()


CHECKS: tuple[AnyCheck, ...] = (
    check_sampler_batch_does_not_matter,
    check_sampler_keeps_nothing_between_calls,
    check_sampler_leaves_its_arguments_alone,
    check_sampler_names_rows_that_are_not_finite,
    check_sampler_parts_are_the_whole,
    check_sampler_shares_agree,
)
