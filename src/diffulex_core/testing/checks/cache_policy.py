"""Checks of cache policies: which rows of a full pass are kept, the same on every process and at every time."""

from __future__ import annotations

import random

import attrs
import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from diffulex_core.distributed import ALONE, Communicator, Seat
from diffulex_core.errors import ConfigError
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.oracles.cache_policy import reason_against
from diffulex_core.testing.subjects import CachePolicySubject
from diffulex_core.testing.thread_group import ThreadGroup
from diffulex_core.types import KVGeometry, Refresh

SECONDS = 20.0
"""How long a rank waits for the others before the check fails."""


@attrs.frozen(kw_only=True)
class Pass:
    """A full pass of one sequence through all layers, of which rows are to be kept.

    Attributes:
        geometry: heads of each layer.
        rows: of the pass.
        refresh: the region and how many to keep.
        seed: of queries and keys.
        dtype: theirs.
    """

    geometry: tuple[KVGeometry, ...]
    rows: int
    refresh: Refresh
    seed: int
    dtype: torch.dtype = torch.float32

    def drawn(self, layer: int, what: int) -> Tensor:
        """Queries (0) or keys (1) of a layer: [rows, heads, head_dim]."""
        shape = self.geometry[layer]
        heads = shape.num_kv_heads if what else shape.num_heads
        generator = torch.Generator().manual_seed(self.seed * 100 + layer * 10 + what)
        return torch.randn(self.rows, heads, shape.head_dim, generator=generator).to(self.dtype)

    def kept(self, subject: CachePolicySubject) -> list[Tensor]:
        """What a new policy keeps in each layer, of its process that holds all heads."""
        policy = subject.factory(geometry=self.geometry, tp=ALONE)
        with torch.inference_mode():
            return [
                policy.keep(layer, self.drawn(layer, 0), self.drawn(layer, 1), self.refresh)
                for layer in range(len(self.geometry))
            ]


@st.composite
def passes(draw: st.DrawFn, *, even: bool = False) -> Pass:
    """Passes of networks with one to three layers; with `even`, two processes can share every layer."""
    geometry = []
    for _ in range(draw(st.integers(1, 3))):
        kv_heads, group = draw(st.sampled_from([(2, 1), (2, 2), (4, 3)] if even else [(1, 1), (1, 4), (2, 2), (3, 2)]))
        width = draw(st.sampled_from([4, 8]))
        geometry.append(KVGeometry(num_heads=kv_heads * group, num_kv_heads=kv_heads, head_dim=width))
    before, region, behind = draw(st.integers(0, 12)), draw(st.integers(1, 6)), draw(st.integers(0, 12))
    outside = max(1, before + behind)
    rows = outside + region
    start = min(before, outside)
    refresh = Refresh(
        start=start,
        end=start + region,
        keep=draw(st.integers(1, outside)),
        per_head=draw(st.booleans()),
        pool=2 * draw(st.integers(0, min(outside - 1, 3))) + 1,
    )
    return Pass(geometry=tuple(geometry), rows=rows, refresh=refresh, seed=draw(st.integers(0, 9999)))


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(here, there) for here, there in zip(one, other, strict=True))


@check(CachePolicySubject)
def check_cache_policy_keeps_what_is_asked(subject: CachePolicySubject, effort: Effort) -> None:
    """As many different rows as asked for each KV head, ascending, and none of the region.

    Without `per_head` all heads keep the same.

    Why: the runner copies these rows' K/V to the front of the sequence's pages. A row too few leaves garbage there, and
    a row of the region is attended to twice.

    Fix: return [kv_heads, keep] int64 row numbers of the whole pass. Numbers among the rows outside the region have to
    be moved past it.
    """

    @effort.for_all(step=passes(), dtype=st.sampled_from([torch.float32, torch.bfloat16]), share=2.0)
    def holds(step: Pass, dtype: torch.dtype) -> None:
        step = attrs.evolve(step, dtype=dtype)
        for layer, kept in enumerate(step.kept(subject)):
            kv_heads = step.geometry[layer].num_kv_heads
            reason = reason_against(kept, rows=step.rows, kv_heads=kv_heads, refresh=step.refresh)
            if reason is not None:
                raise CheckFailed(f"what is kept in layer {layer} {reason} ({step}).")


@check(CachePolicySubject)
def check_cache_policy_depends_on_its_arguments_only(subject: CachePolicySubject, effort: Effort) -> None:
    """A pass keeps the same rows again, after other passes, in other layers' order and by another policy of its kind.

    Queries and keys stay as they are, and so do the process's random generators.

    Why: many sequences take turns on one policy, and a pass is repeated after a preemption; both must give what was
    kept before.

    Fix: keep nothing on the policy but its constructor's arguments, and draw no random numbers.
    """

    def depends_on_nothing_else(step: Pass, seed: int) -> None:
        before = torch.get_rng_state(), str(np.random.get_state(legacy=False)), random.getstate()
        expected = step.kept(subject)
        policy = subject.factory(geometry=step.geometry, tp=ALONE)
        other = attrs.evolve(step, seed=step.seed + seed + 1)
        kept = dict[int, Tensor]()
        with torch.inference_mode():
            for layer in reversed(range(len(step.geometry))):
                policy.keep(layer, other.drawn(layer, 0), other.drawn(layer, 1), step.refresh)
                query, key = step.drawn(layer, 0), step.drawn(layer, 1)
                kept[layer] = policy.keep(layer, query, key, step.refresh)
                if not (torch.equal(query, step.drawn(layer, 0)) and torch.equal(key, step.drawn(layer, 1))):
                    raise CheckFailed(f"a call changed the queries or keys of layer {layer} ({step}).")
                policy.keep(layer, other.drawn(layer, 0), other.drawn(layer, 1), step.refresh)
        if not _same(expected, [kept[layer] for layer in range(len(step.geometry))]):
            raise CheckFailed(f"after passes of others, or in another order of layers, other rows are kept ({step}).")
        after = torch.get_rng_state(), str(np.random.get_state(legacy=False)), random.getstate()
        if not torch.equal(before[0], after[0]) or before[1:] != after[1:]:
            raise CheckFailed("a call moved a random generator of the process (torch, numpy or random).")
        torch.manual_seed(2)
        if not _same(expected, step.kept(subject)):
            raise CheckFailed(f"with another seed of torch's own generator other rows are kept ({step}).")

    @effort.for_all(step=passes(), seed=st.integers(0, 99))
    def holds(step: Pass, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            depends_on_nothing_else(step, seed)


def _stays_alone(subject: CachePolicySubject) -> str | None:
    """Why a policy cannot be made for several processes; None where it can."""
    try:
        subject.factory(geometry=(KVGeometry(num_heads=1, num_kv_heads=1, head_dim=4),), tp=Seat(0, 2))
    except ConfigError as error:
        return f"it is not made for several processes: {' '.join(error.problems)}"
    except Exception:  # noqa: BLE001 - code under test may raise anything; the check itself will show it
        return None
    return None


@check(CachePolicySubject, when=_stays_alone)
def check_cache_policy_shares_agree(subject: CachePolicySubject, effort: Effort) -> None:
    """Two processes that divide the heads keep what one process keeps that holds all of them.

    Also where there are fewer KV heads than processes, so that two hold the same one, each for some of its queries.

    Why: without `per_head` all must keep the same rows, or their pages no longer hold the same tokens; and an answer
    shall not depend on how a network is divided.

    Fix: sum or compare scores over all heads through `tp`, the same calls in the same order on every process;
    `geometry[layer].copies` says how many neighbouring processes hold one KV head. A policy for one process only raises
    ConfigError when it is made with a `tp` of more.
    """

    @effort.for_all(step=passes(even=True), copied=st.booleans())
    def holds(step: Pass, copied: bool) -> None:
        if copied:
            geometry = tuple(attrs.evolve(each, num_heads=4, num_kv_heads=1) for each in step.geometry)
            step = attrs.evolve(step, geometry=geometry)
        whole = step.kept(subject)

        def keep(tp: Communicator) -> list[Tensor]:
            held = tuple(
                attrs.evolve(
                    each,
                    num_heads=each.num_heads // 2,
                    num_kv_heads=1 if copied else each.num_kv_heads // 2,
                    copies=2 if copied else 1,
                )
                for each in step.geometry
            )
            policy = subject.factory(geometry=held, tp=tp)
            kept = []
            for layer, each in enumerate(held):
                query, key = step.drawn(layer, 0), step.drawn(layer, 1)
                mine = query[:, tp.rank * each.num_heads : (tp.rank + 1) * each.num_heads].clone()
                first = 0 if copied else tp.rank * each.num_kv_heads
                with torch.inference_mode():
                    kept.append(policy.keep(layer, mine, key[:, first : first + each.num_kv_heads], step.refresh))
            return kept

        ranks = ThreadGroup(2, seconds=SECONDS).run(keep)
        for layer, expected in enumerate(whole):
            for rank in range(2):
                heads = step.geometry[layer].num_kv_heads // 2
                mine = expected if copied else expected[rank * heads : (rank + 1) * heads]
                if not torch.equal(ranks[rank][layer], mine):
                    raise CheckFailed(
                        f"rank {rank} of 2 keeps {ranks[rank][layer].tolist()} in layer {layer}, one process keeps "
                        f"{mine.tolist()} for these heads ({step})."
                    )


CHECKS: tuple[AnyCheck, ...] = (
    check_cache_policy_keeps_what_is_asked,
    check_cache_policy_depends_on_its_arguments_only,
    check_cache_policy_shares_agree,
)
