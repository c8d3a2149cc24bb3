"""Checks of kernels of the layers: what each of them computes, what it leaves alone, and whom it depends on."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from hypothesis import assume, strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.listing import LAYERS, Call, Operation, Sizes, Source
from diffulex_core.sampling.facts import Facts
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.kernel_cases import require_clear_answers, served, serves_nothing_here
from diffulex_core.testing.oracles.layers import ExactLayers
from diffulex_core.testing.patience import patience
from diffulex_core.testing.subjects import LayerKernelsSubject
from diffulex_core.testing.tolerances import require_close

ROWS = (5, 0, 1, 17)
EVERY = {operation.name: operation for operation in LAYERS}
NEAR = 1e-5
"""How far a logarithm of a sum may be off, however large its logits are."""


@attrs.frozen(kw_only=True)
class Problem:
    """One call of one kernel.

    Attributes:
        operation: which.
        sizes: of its tensors.
        case: device and dtype.
        strided: rows stand apart in memory.
        seed: of the numbers.
    """

    operation: Operation
    sizes: Sizes
    case: KernelCase
    strided: bool
    seed: int

    def call(self) -> Call:
        """Its arguments, fresh ones."""
        return self.operation.draw(self.sizes, Source.seeded(self.case, self.seed, strided=self.strided))

    def run(self, made: object, call: Call) -> tuple[Tensor, ...]:
        """What kernels make of a call: parts of the result, then what is written."""
        with torch.inference_mode(), patience(f"a call of `{self.operation.name}`", busy=30, idle=300):
            return (*self.operation.run(made, call), *call.written)

    @property
    def backend(self) -> str:
        """Whose tolerances hold."""
        return "dense" if self.case.device_type == "cpu" else "device"

    def __str__(self) -> str:
        laid = ", rows apart in memory" if self.strided else ""
        told = ", ".join(f"{name} {value}" for name, value in self.sizes.items())
        return (
            f"`{self.operation.name}` of {told}, {self.case.dtype} on {self.case.device_type}, seed {self.seed}{laid}"
        )


def _problems(subject: LayerKernelsSubject, *names: str, rows: tuple[int, ...] = ROWS) -> SearchStrategy[Problem]:
    cases = served(subject.factory())
    chosen = [(operation, sizes) for operation in LAYERS for sizes in operation.sizes if operation.name in names]

    def problem(which: int, count: int, case: KernelCase, strided: bool, seed: int) -> Problem:
        operation, sizes = chosen[which]
        return Problem(operation=operation, sizes={"rows": count, **sizes}, case=case, strided=strided, seed=seed)

    return st.builds(
        problem,
        which=st.integers(0, len(chosen) - 1),
        count=st.sampled_from(rows),
        case=st.sampled_from(cases),
        strided=st.booleans(),
        seed=st.integers(0, 999),
    )


def _serves_nothing(subject: LayerKernelsSubject) -> str | None:
    return serves_nothing_here(subject.factory)


def _require(found: Sequence[Tensor], expected: Sequence[Tensor], problem: Problem) -> None:
    """Raise CheckFailed unless all parts of a result have the expected shapes and numbers."""
    if len(found) != len(expected):
        raise CheckFailed(f"{len(found)} tensors come back; expected are {len(expected)}, with {problem}")
    for index, (ours, exact) in enumerate(zip(found, expected, strict=True)):
        if ours.shape != exact.shape:
            raise CheckFailed(f"part {index} is {list(ours.shape)}, expected {list(exact.shape)}, with {problem}")
        if ours.numel():
            flat = ours.cpu().flatten(1) if ours.dim() > 1 else ours.cpu()[:, None]
            want = exact.flatten(1) if exact.dim() > 1 else exact[:, None]
            require_close(flat, want.to(flat.dtype), f"part {index}, with {problem}", backend=problem.backend)


def _computes(subject: LayerKernelsSubject, effort: Effort, *names: str, share: float = 1.0) -> None:
    """Hold operations to their definitions; none changes its arguments' dtype."""

    @effort.for_all(problem=_problems(subject, *names), share=share)
    def holds(problem: Problem) -> None:
        call = problem.call()
        expected = problem.operation.run(ExactLayers(), call)
        dtype = call.inputs[0].dtype
        found = problem.run(subject.factory(), call)[: len(expected)]
        _require(found, expected, problem)
        if problem.operation.name not in ("route", "blend") and {each.dtype for each in found} != {dtype}:
            raise CheckFailed(f"{[each.dtype for each in found]} come back for {dtype}, with {problem}")


@check(LayerKernelsSubject)
def check_layer_kernels_say_whom_they_serve(subject: LayerKernelsSubject, effort: Effort) -> None:
    """`reasons` answers every case with a list of sentences, the same each time, and `priority` with a whole number.

    Why: `layer_impl="auto"` asks all kernels that are installed, on machines that lack what they need as well.
    Fix: look for devices and packages inside `reasons`, and return a sentence for each that is missing.
    """
    require_clear_answers(subject.factory)


@check(LayerKernelsSubject, when=_serves_nothing)
def check_norms_are_those_of_each_row(subject: LayerKernelsSubject, effort: Effort) -> None:
    """Rows are divided by their own root mean square and scaled, alone, behind an addition or before one.

    Why: a norm over the wrong width, or an addend that is left out, answers a little worse.
    Fix: see `LayerKernels.normed`, `add_and_norm` and `norm_and_add`; go by strides, or call `contiguous()`.
    """
    _computes(subject, effort, "normed", "add_and_norm", "norm_and_add", share=1.5)


@check(LayerKernelsSubject, when=_serves_nothing)
def check_gates_are_activated_and_multiplied(subject: LayerKernelsSubject, effort: Effort) -> None:
    """The first half of a row, activated, times its second half, whatever the width.

    Why: gate and up projection come in one tensor, and the halves are easily confused.
    Fix: `act(packed[:, :size]) * packed[:, size:]`, with the activation that is named.
    """
    _computes(subject, effort, "gated")


@check(LayerKernelsSubject, when=_serves_nothing)
def check_heads_are_normalised_and_turned(subject: LayerKernelsSubject, effort: Effort) -> None:
    """Queries and keys come back normalised and rotated, head by head; values as they are, or normalised.

    Why: attention reads them at once. A head that is turned by another row's angle sees the wrong distance.
    Fix: dimension j below half of the rotated ones is paired with j + half; those behind pass. Norms come first.
    """
    _computes(subject, effort, "turn_and_store")


@check(LayerKernelsSubject, when=_serves_nothing)
def check_keys_and_values_go_to_their_slots(subject: LayerKernelsSubject, effort: Effort) -> None:
    """Each row's key and value stand in its slot as they come back, those of slot -1 nowhere; all else is as it was.

    Why: pages belong to many requests. A write next to the slot changes somebody else's answer.
    Fix: slot s is page `s // page_size`, offset `s % page_size`; write nothing for -1.
    """

    @effort.for_all(problem=_problems(subject, "turn_and_store"))
    def holds(problem: Problem) -> None:
        call, before = problem.call(), problem.call().written
        _, key, value, *written = problem.run(subject.factory(), call)
        assert call.slots is not None
        for what, kept, found, fresh in zip(("key", "value"), before, written, (key, value), strict=True):
            expected = kept.clone()
            for row, slot in enumerate(call.slots.tolist()):
                if slot >= 0:
                    expected[slot] = fresh[row].to(expected.dtype)
            wrong = (found != expected).flatten(1).any(1).nonzero().flatten().tolist()
            if wrong:
                raise CheckFailed(
                    f"the {what} in slot {wrong[0]} is not what it should be, with {problem}; rows go to "
                    f"{call.slots.tolist()}"
                )


@check(LayerKernelsSubject, when=_serves_nothing)
def check_tokens_are_routed_to_their_best_experts(subject: LayerKernelsSubject, effort: Effort) -> None:
    """The experts of each token are those of the highest scores, best first, of equals the lowest id; so are weights.

    Why: another expert, or weights in another order, answers a little worse.
    Fix: see `layers.moe.routing.choose`: the bias counts in the choice only, and so do the groups.
    """

    @effort.for_all(problem=_problems(subject, "route"), share=1.5)
    def holds(problem: Problem) -> None:
        call = problem.call()
        ids, weights = problem.run(subject.factory(), call)
        exact_ids, exact_weights = problem.operation.run(ExactLayers(), call)
        if ids.dtype != torch.int32 or not torch.equal(ids.cpu(), exact_ids):
            raise CheckFailed(f"ids are {ids.dtype} {ids.tolist()}, expected {exact_ids.tolist()}, with {problem}")
        _require([weights], [exact_weights], problem)


@check(LayerKernelsSubject, when=_serves_nothing)
def check_embeddings_are_blended(subject: LayerKernelsSubject, effort: Effort) -> None:
    """A row is the weighted sum of embeddings, and as long as the weighted lengths together where that is asked.

    Why: token merging feeds such rows instead of a token, and their length tells the layers how sure it is.
    Fix: see `SoftInputNetwork.blend`; a sum of length zero stays zero.
    """
    _computes(subject, effort, "blend")


@check(LayerKernelsSubject, when=_serves_nothing)
def check_heads_select_what_logits_would_tell(subject: LayerKernelsSubject, effort: Effort) -> None:
    """What is told of a row is what its logits say: largest values, their columns, sums of exponentials, given columns.

    Of equals the highest column comes first, but columns that are excluded or padding are never chosen and have no
    share, and a column that is lowered counts as lowered, while a watched one is told as it is.

    Why: nobody sees the logits, so that nobody else can notice that a token was chosen which never may be.
    Fix: see `sampling.facts`. Logits are rounded to the dtype of `hidden`, then lowered, then excluded. Columns from
    `Wanted.columns` on may hold NaN.
    """

    @effort.for_all(problem=_problems(subject, "select"), share=2.0)
    def holds(problem: Problem) -> None:
        call = problem.call()
        with torch.inference_mode(), patience("a call of `select`", busy=30, idle=300):
            found = subject.factory().select(*call.arguments)
        _require_facts(found, ExactLayers().select(*call.arguments), str(problem))


@check(LayerKernelsSubject, when=_serves_nothing)
def check_selection_keeps_its_precision(subject: LayerKernelsSubject, effort: Effort) -> None:
    """The logarithm of a row's sum of exponentials is exact to 1e-5, however large the row's logits are.

    Why: confidence is the difference of two such numbers, and thresholds mean what they say. In float32 that of 30,000
    has two digits behind the point.
    Fix: add the row's maximum in float64, to the logarithm of the sum of exponentials of what is left.
    """
    high = {torch.float32: 30000.0, torch.bfloat16: 120.0, torch.float16: 900.0}

    @effort.for_all(problem=_problems(subject, "select", rows=(3,)), below=st.booleans(), share=0.5)
    def holds(problem: Problem, below: bool) -> None:
        hidden, weight, _, wanted = problem.call().arguments
        offset = high[problem.case.dtype] * (-1 if below else 1)
        wanted = attrs.evolve(wanted, lowered=None, penalty=None)
        lifted = torch.full((len(weight),), offset, dtype=hidden.dtype, device=hidden.device)
        exact = ExactLayers().select(hidden, weight, lifted, wanted)
        with torch.inference_mode():
            found = subject.factory().select(hidden, weight, lifted, wanted)
        _require_facts(found, exact, f"logits around {offset:g}, with {problem}")


@check(LayerKernelsSubject, when=_serves_nothing)
def check_selection_tells_rows_that_are_not_finite(subject: LayerKernelsSubject, effort: Effort) -> None:
    """The sum of exponentials of a row that holds NaN or infinity is not finite, and columns are columns all the same.

    Why: the request is told that its numbers are broken, instead of being answered by them.
    Fix: let NaN through maxima and sums into `log_sum`, and keep columns within the head's.
    """

    @effort.for_all(
        problem=_problems(subject, "select", rows=(5, 17)),
        bad=st.sampled_from([torch.nan, torch.inf, -torch.inf]),
        row=st.integers(0, 4),
        share=0.5,
    )
    def holds(problem: Problem, bad: float, row: int) -> None:
        call = problem.call()
        hidden, weight, _, wanted = call.arguments
        assume(len(set(range(wanted.columns)) - set(wanted.excluded)) > 1)
        hidden[row] = bad
        weight[: wanted.columns, 0] = 1.0
        with torch.inference_mode(), patience("a call of `select`", busy=30, idle=300):
            found = subject.factory().select(*call.arguments)
        if bool(found.log_sum[row].isfinite()):
            raise CheckFailed(f"row {row} holds {bad}, but log_sum is {float(found.log_sum[row])}, with {problem}")
        columns = [found.column, *([] if found.top_columns is None else [found.top_columns.flatten()])]
        told = torch.cat(columns)
        if not bool(((told >= 0) & (told < max(wanted.columns, 1))).all()):
            raise CheckFailed(f"row {row} holds {bad}, and columns are {told.tolist()}, with {problem}")


@check(LayerKernelsSubject, when=_serves_nothing)
def check_rows_of_layer_kernels_do_not_meet(subject: LayerKernelsSubject, effort: Effort) -> None:
    """NaN in one row changes no bit of any other row, nor what other rows store.

    Why: rows are those of many requests, and one of them may be broken.
    Fix: mask what is loaded for rows or dimensions that are not there; do not multiply with zero.
    """

    @effort.for_all(problem=_problems(subject, *EVERY, rows=(5, 17)), row=st.integers(0, 4), share=2.0)
    def holds(problem: Problem, row: int) -> None:
        call, spoiled = problem.call(), problem.call()
        for tensor in spoiled.inputs:
            tensor[row] = torch.nan
        sound, found = (problem.run(subject.factory(), each) for each in (call, spoiled))
        slot = -1 if call.slots is None else int(call.slots[row])
        for index, (one, other) in enumerate(zip(sound, found, strict=True)):
            mine = slot if index >= len(sound) - len(call.written) else row
            others = torch.tensor([at for at in range(len(one)) if at != mine], dtype=torch.int64)
            if not torch.equal(one.cpu()[others], other.cpu()[others]):
                raise CheckFailed(f"NaN in row {row} changes other rows of part {index}, with {problem}")


@check(LayerKernelsSubject, when=_serves_nothing)
def check_layer_kernels_depend_on_their_arguments_only(subject: LayerKernelsSubject, effort: Effort) -> None:
    """The same arguments give the same bits, also after other calls and of other instances, and stay as they are.

    Why: an answer with a seed is to be the same in every run, and hidden rows are read again by the next layer.
    Fix: keep nothing between calls, add in a fixed order (no atomics), and write into memory of your own.
    """

    @effort.for_all(problem=_problems(subject, *EVERY, rows=(17, 5)), share=2.0)
    def holds(problem: Problem) -> None:
        made, call, copy = subject.factory(), problem.call(), problem.call()
        first = problem.run(made, call)
        kept = [tensor.clone() for tensor in first]
        problem.run(made, attrs.evolve(problem, seed=problem.seed + 1).call())
        if not _same(first, kept):
            raise CheckFailed(f"a later call changes what an earlier one returned, with {problem}")
        for who, again in (("again", made), ("of another instance", subject.factory())):
            if not _same(problem.run(again, problem.call()), kept):
                raise CheckFailed(f"the same arguments {who} give other bits, with {problem}")
        if not _same(call.inputs, copy.inputs):
            raise CheckFailed(f"a call changes its arguments, with {problem}")


def _same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def _require_facts(found: Facts, exact: Facts, where: str) -> None:
    """Raise CheckFailed unless facts are the expected ones: whole numbers exactly, logarithms nearly."""
    for field in attrs.fields(Facts):
        ours, theirs = (attrs.asdict(each, recurse=False)[field.name] for each in (found, exact))
        if (ours is None) != (theirs is None):
            raise CheckFailed(f"{field.name} is {ours}, expected {theirs}, {where}")
        if theirs is None:
            continue
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            kinds = [f"{each.dtype} {list(each.shape)}" for each in (ours, theirs)]
            raise CheckFailed(f"{field.name} is {kinds[0]}, expected {kinds[1]}, {where}")
        near = NEAR if field.name in ("log_sum", "entropy") else 0.0
        far = (ours.cpu() != theirs) & ~((ours.cpu() - theirs).abs() <= near)
        if bool(far.any()):
            at = tuple(far.nonzero()[0].tolist())
            raise CheckFailed(
                f"{field.name} is {ours.cpu()[at].item()} in row {at[0]}, expected {theirs[at].item()}, {where}"
            )


CHECKS: tuple[AnyCheck, ...] = (
    check_layer_kernels_say_whom_they_serve,
    check_norms_are_those_of_each_row,
    check_gates_are_activated_and_multiplied,
    check_heads_are_normalised_and_turned,
    check_keys_and_values_go_to_their_slots,
    check_tokens_are_routed_to_their_best_experts,
    check_embeddings_are_blended,
    check_heads_select_what_logits_would_tell,
    check_selection_keeps_its_precision,
    check_selection_tells_rows_that_are_not_finite,
    check_rows_of_layer_kernels_do_not_meet,
    check_layer_kernels_depend_on_their_arguments_only,
)
