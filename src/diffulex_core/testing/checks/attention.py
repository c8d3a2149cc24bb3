"""Checks of attention backends: the right numbers, from the right slots, and nothing kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from types import MappingProxyType

import attrs
import torch
from hypothesis import strategies as st
from torch import Tensor

from diffulex_core.attention.case import AttentionCase
from diffulex_core.testing.attention_problems import Problem, Stretch, grid, problems, served
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.oracles.attention import dense
from diffulex_core.testing.oracles.sampler import difference
from diffulex_core.testing.subjects import AttentionSubject

ALLOWED = {torch.float32: 3e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""How far an output may be from the exact one, absolutely and relative to it."""
ALLOWED_ON_DEVICES = {**ALLOWED, torch.float32: 2e-3}
"""The matrix products of devices may round float32 to fewer bits."""


def _serves_nothing_here(subject: AttentionSubject) -> str | None:
    try:
        cases = served(subject)
    except Exception:  # noqa: BLE001 - a probe that raises is what check_attention_probe_gives_reasons tells of
        return "its probe raises"
    return None if cases else "its probe refuses every case on the devices of this machine"


def _refuse_difference(out: Tensor, exact: Tensor, problem: Problem, *, slack: float = 1.0) -> None:
    allowed = (ALLOWED if problem.case.device_type == "cpu" else ALLOWED_ON_DEVICES)[problem.case.dtype] * slack
    if not bool(out.isfinite().all()):
        row = int((~out.isfinite()).flatten(1).any(1).nonzero()[0])
        raise CheckFailed(f"row {row} holds numbers that are not finite {problem}")
    excess = (out.double() - exact).abs() - allowed * (1 + exact.abs())
    if excess.numel() and float(excess.max()) > 0:
        row, head = (int(at) for at in (excess.amax(-1) == excess.max()).nonzero()[0])
        off = float((out.double() - exact)[row, head].abs().max())
        raise CheckFailed(f"row {row}, head {head} is off by {off:.3g}, allowed is {allowed:.1g} {problem}")


def _exact(problem: Problem) -> Tensor:
    return dense(problem.query, problem.pages(1), problem.pages(2), problem.batch, problem.scale)


@check(AttentionSubject)
def check_attention_probe_gives_reasons(subject: AttentionSubject, effort: Effort) -> None:
    """The probe answers every case with a list of sentences, the same each time, and refuses heads that do not divide.

    Why: `attn_impl="auto"` goes by it, and users who named the backend read the sentences.

    Fix: return a list of non-empty texts, empty when the backend can serve the case (`case.head_problems()` is a good
    start). Look at the case and the installed packages, raise nothing, and touch no device.
    """
    odd = AttentionCase(
        device_type="cpu", dtype=torch.float32, head_dim=16, num_heads=5, num_kv_heads=2, page_size=16, block_size=4
    )
    devices = ("cpu", "cuda", "meta")
    cases = [odd, *(attrs.evolve(odd, device_type=device) for device in devices[1:])]
    cases += [case for device in devices for case in grid(device)[::17]]
    for case in cases:
        reasons, again = subject.probe(case), subject.probe(case)
        if not isinstance(reasons, list) or not all(isinstance(each, str) and each.strip() for each in reasons):
            raise CheckFailed(f"the probe answers {case} with {reasons!r}; it returns a list of sentences.")
        if reasons != again:
            raise CheckFailed(f"the probe answers {case} with {reasons} first and then with {again}.")
        if case.num_heads % case.num_kv_heads and not reasons:
            raise CheckFailed(
                f"the probe accepts {case.num_heads} query heads over {case.num_kv_heads} key/value heads."
            )


@check(AttentionSubject, when=_serves_nothing_here)
def check_attention_serves_what_its_probe_accepts(subject: AttentionSubject, effort: Effort) -> None:
    """Every accepted case gives softmax attention over each row's own key interval, within its dtype's tolerance.

    Cases differ in heads, grouping, head_dim, page and block size, dtype, sliding windows, ragged lengths and scales.

    Why: all strategies rest on this one contract. One key too many shows a block what it must not know yet; a wrong
    head or page gives text that is only a little worse.

    Fix: row `r` sees the slots `key_start[r] <= s < key_end[r]` of sequence `row_sequence[r]`; slot `s` is at
    `page_tables[sequence, s // page_size]`, offset `s % page_size`; query head `h` reads KV head `h // (heads //
    kv_heads)`; scores are multiplied by `scale`. Refuse in the probe what cannot be served.
    """

    cases = served(subject)
    widths = sorted({case.head_dim for case in cases})
    for width in widths:

        @effort.for_all(problem=problems([case for case in cases if case.head_dim == width]), share=2 / len(widths))
        def holds(problem: Problem) -> None:
            _refuse_difference(problem.attend(subject.factory()), _exact(problem), problem)


@check(AttentionSubject, when=_serves_nothing_here)
def check_attention_rows_without_keys_are_zero(subject: AttentionSubject, effort: Effort) -> None:
    """Rows with an empty interval, padding among them, come out as zeros, whatever the pages hold.

    Why: batches are padded. Softmax over nothing is NaN, and NaN in a padding row spreads through matrix products that
    share rows.

    Fix: start from zeros and write only rows that see something.
    """

    @effort.for_all(
        case=st.sampled_from(served(subject)),
        rows=st.integers(1, 5),
        padding=st.integers(0, 8),
        fill=st.sampled_from([0.0, float("nan"), float("inf")]),
        alone=st.booleans(),
    )
    def holds(case: AttentionCase, rows: int, padding: int, fill: float, alone: bool) -> None:
        empty = Stretch(name=0, key_start=(0,) * rows, key_end=(0,) * rows, slots=0, table=(1,))
        seeing = Stretch(name=1, key_start=(0,), key_end=(1,), slots=1, table=(0,))
        stretches = (empty,) if alone else (seeing, empty)
        problem = Problem(case=case, stretches=stretches, padding=padding, num_pages=3, seed=0, scale=1.0, fill=fill)
        out = problem.attend(subject.factory())[0 if alone else 1 :]
        if not torch.equal(out, torch.zeros_like(out)):
            raise CheckFailed(f"rows that see no key are not zero, with {fill} in the pages {problem}")


@check(AttentionSubject, when=_serves_nothing_here)
def check_attention_reads_its_own_slots_only(subject: AttentionSubject, effort: Effort) -> None:
    """NaN in pages of others, in free pages and behind a sequence's last slot changes no bit.

    Why: memory is not cleared between owners. A masked product still multiplies what it masks, and 0 times NaN is NaN.

    Fix: load only slots inside an interval, or replace the others by zeros before any product; never gather by an
    entry of -1, which is another page (the last one).
    """

    @effort.for_all(problem=problems(served(subject)))
    def holds(problem: Problem) -> None:
        clean = problem.attend(subject.factory())
        spoilt = attrs.evolve(problem, fill=float("nan")).attend(subject.factory())
        if not torch.equal(clean, spoilt):
            row = int((clean != spoilt).flatten(1).any(1).nonzero()[0])
            raise CheckFailed(f"row {row} changes when slots that nobody sees hold NaN {problem}")


@check(AttentionSubject, when=_serves_nothing_here)
def check_attention_page_numbers_do_not_matter(subject: AttentionSubject, effort: Effort) -> None:
    """The same sequences in other physical pages give the same bits.

    Why: which pages a request gets depends on who else is served. Its answer must not.

    Fix: follow the page table slot by slot; never assume that pages are neighbours, ascending or start at 0.
    """

    @effort.for_all(problem=problems(served(subject)), data=st.randoms(use_true_random=False))
    def holds(problem: Problem, data: object) -> None:
        label = list(range(problem.num_pages))
        data.shuffle(label)  # type: ignore[attr-defined]
        moved = tuple(attrs.evolve(each, table=tuple(label[page] for page in each.table)) for each in problem.stretches)
        other = attrs.evolve(problem, stretches=moved)
        if not torch.equal(problem.attend(subject.factory()), other.attend(subject.factory())):
            raise CheckFailed(f"other page numbers ({label}) give other bits {problem}")


@check(AttentionSubject, when=_serves_nothing_here)
def check_attention_keeps_precision(subject: AttentionSubject, effort: Effort) -> None:
    """Long rows and large scores lose nothing: sums are kept in float32, and no exponential overflows.

    Why: sums in half precision stand still after a few hundred keys, and exp overflows at 89. Neither shows in short
    tests.

    Fix: accumulate scores, weights and outputs in float32, and subtract the row's maximum before exp.
    """
    smallest_last = sorted(served(subject), key=lambda case: -case.num_heads * case.head_dim)
    cases = {case.dtype: case for case in smallest_last}
    for case in cases.values():
        for keys, sharp in ((1200, False), (7, True)):
            pages = -(-keys // case.page_size)
            stretch = Stretch(name=0, key_start=(0, 0), key_end=(keys, keys - 1), slots=keys, table=tuple(range(pages)))
            problem = _Stress(
                case=attrs.evolve(case, windows=(None,)),
                stretches=(stretch,),
                num_pages=pages + 1,
                seed=1,
                scale=case.head_dim**-0.5,
                sharp=sharp,
            )
            if not subject.probe(problem.case):
                # Scores of some hundreds are known to a few parts in ten thousand.
                _refuse_difference(
                    problem.attend(subject.factory()), _exact(problem), problem, slack=50.0 if sharp else 1.0
                )


@attrs.frozen(kw_only=True, eq=False)
class _Stress(Problem):
    """Keys that all count alike, with values around 3; or, when `sharp`, scores of some hundreds."""

    sharp: bool

    def drawn(self, stretch: Stretch, what: int, *shape: int) -> Tensor:
        numbers = Problem.drawn(self, stretch, what, *shape)
        if not self.sharp:
            return numbers * 0.01 if what < 2 else numbers.abs() + 3
        large = math.sqrt(300 * math.sqrt(self.case.head_dim) / self.case.head_dim)
        return (numbers.sign() if what == 2 else torch.full(shape, large) + numbers * 0.1) / (2 if what == 0 else 1)


@check(AttentionSubject, when=_serves_nothing_here)
def check_attention_serves_large_steps(subject: AttentionSubject, effort: Effort) -> None:
    """Steps of many rows, of many sequences and over many keys are right to the last of them.

    Why: kernels work in tiles, and share out long sequences among workers whose parts are merged. The rest behind a
    tile, the merging, and page numbers that no byte holds do not occur in small steps.
    Fix: compare where it is wrong with the sizes of your tiles, tables and number types. Parts of one row are merged
    by their sums of exponentials, brought to a common maximum.
    """
    smallest = sorted(served(subject), key=lambda case: (abs(case.num_heads * case.head_dim - 64), case.page_size))
    by_dtype = {case.dtype: attrs.evolve(case, windows=(None,)) for case in reversed(smallest)}
    for case in by_dtype.values():
        for what, lengths in _LARGE.items():
            problem = _large(case, lengths)
            if subject.probe(case):
                continue
            try:
                _refuse_difference(problem.attend(subject.factory()), _exact(problem), problem)
            except CheckFailed as error:
                raise CheckFailed(f"in a step of {what}: {error}") from error


_LARGE: Mapping[str, Sequence[tuple[int, int]]] = MappingProxyType({
    "one sequence of 150 rows over 195 keys": [(150, 195)],
    "40 sequences of a few rows": [(1 + name % 3, 4 + name % 7) for name in range(40)],
    "two sequences over 2,100 and 700 keys": [(3, 2100), (2, 700)],
})  # fmt: skip
"""Rows and keys of each sequence; the first row of each misses the last key, and the last row the first ones."""


@attrs.frozen(kw_only=True, eq=False)
class _Large(Problem):
    """Too large to be told interval by interval."""

    def __str__(self) -> str:
        case, stretch = self.case, self.stretches[0]
        return (
            f"(heads {case.num_heads} over {case.num_kv_heads}, head_dim {case.head_dim}, {case.dtype}, page size "
            f"{case.page_size}, pages up to {self.num_pages}; rows are counted through the step, and the first "
            f"sequence has {len(stretch.key_end)})"
        )


def _large(case: AttentionCase, lengths: Sequence[tuple[int, int]]) -> Problem:
    needed = [-(-keys // case.page_size) for _, keys in lengths]
    num_pages = max(sum(needed) + 1, 300)
    pages = iter(Random(0).sample(range(num_pages), sum(needed)))
    return _Large(
        case=case,
        stretches=tuple(
            Stretch(
                name=name,
                key_start=(0,) * (rows - 1) + (keys // 2,),
                key_end=(keys - 1,) * (rows > 1) + (keys,) * (rows - (rows > 1)),
                slots=keys,
                table=tuple(next(pages) for _ in range(count)),
            )
            for name, ((rows, keys), count) in enumerate(zip(lengths, needed, strict=True))
        ),
        num_pages=num_pages,
        seed=5,
        scale=case.head_dim**-0.5,
    )


@check(AttentionSubject, when=_serves_nothing_here)
def check_attention_leaves_its_arguments_alone(subject: AttentionSubject, effort: Effort) -> None:
    """Queries, pages and the batch are the same after a call, and the output is memory of its own.

    Why: pages are the cache; later steps read them.

    Fix: write into a new tensor. Scaling the query in place is the usual slip.
    """

    @effort.for_all(problem=problems(served(subject)))
    def holds(problem: Problem) -> None:
        query, keys, values, batch = problem.query, problem.pages(1), problem.pages(2), problem.batch
        with torch.inference_mode():
            out = subject.factory().attend(query, keys, values, batch, problem.scale)
        for name, now, before in (
            ("query", query, problem.query),
            ("keys", keys, problem.pages(1)),
            ("values", values, problem.pages(2)),
            ("key_start", batch.key_start, problem.batch.key_start),
            ("key_end", batch.key_end, problem.batch.key_end),
            ("row_sequence", batch.row_sequence, problem.batch.row_sequence),
            ("page_tables", batch.page_tables, problem.batch.page_tables),
        ):
            if not torch.equal(now, before):
                raise CheckFailed(f"a call changed the {name} {problem}")
            if out.numel() and out.untyped_storage().data_ptr() == now.untyped_storage().data_ptr():
                raise CheckFailed(f"the output shares memory with the {name} {problem}")
        if found := difference(batch.runs, problem.batch.runs):
            raise CheckFailed(f"a call changed the batch's runs: {found} {problem}")


@check(AttentionSubject, when=_serves_nothing_here)
def check_attention_keeps_nothing_between_calls(subject: AttentionSubject, effort: Effort) -> None:
    """Calls in any order, on one instance or on several, give what each gives alone; earlier outputs stay as they are.

    Why: one instance serves all layers of all steps, and two engines have one each.

    Fix: keep no page table, mask, plan or output buffer from call to call; if something must be kept, key it by all
    that it was made from.
    """

    @effort.for_all(one=problems(served(subject)), two=problems(served(subject)), share=0.5)
    def holds(one: Problem, two: Problem) -> None:
        expected = one.attend(subject.factory())
        # The same shapes with other contents and intervals are what a cache mistakes for the same.
        alike = attrs.evolve(
            one,
            seed=one.seed + 1,
            stretches=tuple(
                attrs.evolve(each, key_end=tuple(max(start, end - 1) for start, end in _pairs(each)))
                for each in one.stretches
            ),
        )
        backend, other = subject.factory(), subject.factory()
        first = backend.attend(one.query, one.pages(1), one.pages(2), one.batch, one.scale)
        kept = first.clone()
        for step, (attending, problem) in enumerate(
            ((backend, two), (other, alike), (backend, alike), (other, one), (backend, one))
        ):
            out = problem.attend(attending)
            if not torch.equal(first, kept):
                raise CheckFailed(f"call {step + 2} wrote into the output of the first call {one}")
            if problem is one and not torch.equal(out, expected):
                raise CheckFailed(f"the same call gives something else as call {step + 2} {one}")
            if problem is not one and not torch.equal(out, problem.attend(subject.factory())):
                raise CheckFailed(f"a call after others (call {step + 2}) gives something else than alone {problem}")


@check(AttentionSubject, when=_serves_nothing_here, level="recommended")
def check_attention_batch_mates_change_no_bit(subject: AttentionSubject, effort: Effort) -> None:
    """The bits of a sequence are those that it has alone, and in any order of the sequences.

    Why: with this, and with dense layers that keep it too, an answer does not depend on what else is served, to the
    last token. Backends on devices may not be able to.

    Fix: reduce each sequence by itself, in an order that depends on nothing but its own slots.
    """

    @effort.for_all(problem=problems(served(subject)))
    def holds(problem: Problem) -> None:
        together = problem.attend(subject.factory())
        begin = 0
        for each in problem.stretches:
            rows = together[begin : begin + len(each.key_end)]
            begin += len(each.key_end)
            alone = attrs.evolve(problem, stretches=(each,), padding=0).attend(subject.factory())
            if not torch.equal(rows, alone):
                raise CheckFailed(f"sequence {each.name} has other bits alone {problem}")
        turned = attrs.evolve(problem, stretches=problem.stretches[::-1], padding=0).attend(subject.factory())
        parts = turned.split([len(each.key_end) for each in problem.stretches[::-1]])
        if not torch.equal(torch.cat(parts[::-1]), together[:begin]):
            raise CheckFailed(f"in reverse order the sequences have other bits {problem}")


def _pairs(stretch: Stretch) -> list[tuple[int, int]]:
    return list(zip(stretch.key_start, stretch.key_end, strict=True))


CHECKS: tuple[AnyCheck, ...] = (
    check_attention_probe_gives_reasons,
    check_attention_serves_what_its_probe_accepts,
    check_attention_rows_without_keys_are_zero,
    check_attention_reads_its_own_slots_only,
    check_attention_page_numbers_do_not_matter,
    check_attention_keeps_precision,
    check_attention_serves_large_steps,
    check_attention_leaves_its_arguments_alone,
    check_attention_keeps_nothing_between_calls,
    check_attention_batch_mates_change_no_bit,
)
