"""Checks of kernels for experts: what they compute, and that nothing else takes part."""

from __future__ import annotations

import attrs
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.moe import ExpertsKernel
from diffulex_core.layers.moe.spec import Activation
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.kernel_cases import require_clear_answers, served, serves_nothing_here
from diffulex_core.testing.oracles.experts import experts
from diffulex_core.testing.patience import patience
from diffulex_core.testing.subjects import ExpertsSubject
from diffulex_core.testing.tolerances import require_close

ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh")
IDLE = 0.3
"""Share of the slots without an expert, and of those with an expert and no weight."""


@attrs.frozen(kw_only=True)
class Problem:
    """What a kernel is called with, drawn by a seed.

    Attributes:
        case: device and dtype.
        rows, slots, experts, hidden, size: sizes of the tensors.
        activation: of the gate.
        strided: the rows of `x`, `ids` and `weights` stand apart in memory.
        seed: of the numbers.
    """

    case: KernelCase
    rows: int
    slots: int
    experts: int
    hidden: int
    size: int
    activation: Activation
    strided: bool
    seed: int

    def tensors(self, *, idle: float = IDLE) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x, ids, weights, w13 and w2; of the slots the share `idle` has no expert, and as many have no weight."""
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.rows, self.hidden, generator=generator)
        w13 = torch.randn(self.experts, 2 * self.size, self.hidden, generator=generator) / self.hidden**0.5
        w2 = torch.randn(self.experts, self.hidden, self.size, generator=generator) / self.size**0.5
        ids = torch.randint(0, self.experts, (self.rows, self.slots), generator=generator, dtype=torch.int32)
        ids[torch.rand(ids.shape, generator=generator) < idle] = -1
        weights = torch.rand(self.rows, self.slots, generator=generator)
        weights[torch.rand(ids.shape, generator=generator) < idle] = 0
        device, dtype = torch.device(self.case.device_type), self.case.dtype
        x, w13, w2 = (each.to(device, dtype) for each in (x, w13, w2))
        return self._laid(x), self._laid(ids.to(device)), self._laid(weights.to(device)), w13, w2

    def _laid(self, tensor: Tensor) -> Tensor:
        if not self.strided:
            return tensor
        wide = tensor.new_full((2 * tensor.shape[0] + 1, tensor.shape[1] + 3), 5)
        wide[1::2, 2:-1] = tensor
        return wide[1::2, 2:-1]

    def __str__(self) -> str:
        laid = ", rows apart in memory" if self.strided else ""
        return (
            f"{self.rows} rows of {self.slots} slots, {self.experts} experts of {self.hidden} by {self.size}, "
            f"{self.activation}, {self.case.dtype} on {self.case.device_type}{laid}"
        )


def _serves_nothing_here(subject: ExpertsSubject) -> str | None:
    return serves_nothing_here(subject.factory)


def _problems(subject: ExpertsSubject, *, rows: tuple[int, ...] = (3, 0, 1, 17, 70)) -> SearchStrategy[Problem]:
    """Sizes that tell first: widths are multiples of 4, as in published models."""
    return st.builds(
        Problem,
        case=st.sampled_from(served(subject.factory())),
        rows=st.sampled_from(rows),
        slots=st.sampled_from((2, 1, 4)),
        experts=st.sampled_from((5, 1, 12)),
        hidden=st.sampled_from((8, 36, 20)),
        size=st.sampled_from((12, 4, 68)),
        activation=st.sampled_from(ACTIVATIONS),
        strided=st.booleans(),
        seed=st.integers(0, 9),
    )


def _call(kernel: ExpertsKernel, problem: Problem, tensors: tuple[Tensor, ...]) -> Tensor:
    x, ids, weights, w13, w2 = tensors
    with torch.inference_mode(), patience("a call of the kernel", busy=30, idle=300):
        out = kernel(x, ids, weights, w13, w2, problem.activation)
    if out.shape != x.shape or out.dtype != x.dtype:
        raise CheckFailed(
            f"it returns {out.dtype} {list(out.shape)} for {x.dtype} {list(x.shape)}, with {problem}; expected is "
            "[rows, hidden] in the dtype of `x`"
        )
    return out


@check(ExpertsSubject)
def check_experts_say_whom_they_serve(subject: ExpertsSubject, effort: Effort) -> None:
    """`reasons` answers every case with a list of sentences, the same each time, and `priority` with a whole number.

    Why: `moe_gemm_impl="auto"` asks every kernel that is installed, on machines that lack what it needs as well.
    Fix: look for devices and packages inside `reasons`, and return a sentence for each that is missing.
    """
    require_clear_answers(subject.factory)


@check(ExpertsSubject, when=_serves_nothing_here)
def check_experts_compute_their_definition(subject: ExpertsSubject, effort: Effort) -> None:
    """Every row is the weighted sum of its experts' gated MLPs, for any number of rows, slots and experts.

    Rows may be none and stand apart in memory; experts may have no row; slots may have no expert or no weight.

    Why: a mixture of experts that takes the wrong one, or the gate for the other half, answers a little worse.
    Fix: `out[t] = sum_j weights[t, j] * w2[e] (act(gate[e] x[t]) * (up[e] x[t]))` with `e = ids[t, j]`; the gate is the
    first half of `w13`. Go by strides, or call `contiguous()`.
    """

    @effort.for_all(problem=_problems(subject), share=2.0)
    def holds(problem: Problem) -> None:
        tensors = problem.tensors()
        expected = experts(*tensors, problem.activation).to(problem.case.dtype)
        found = _call(subject.factory(), problem, tensors).cpu()
        backend = "dense" if problem.case.device_type == "cpu" else "device"
        require_close(found, expected, f"with {problem}", backend=backend)


@check(ExpertsSubject, when=_serves_nothing_here)
def check_idle_experts_take_no_part(subject: ExpertsSubject, effort: Effort) -> None:
    """A slot with id -1 or weight 0 adds nothing, even if the expert that stands there would compute NaN.

    Why: padding rows, and experts that another process holds, come as such slots. NaN times zero is NaN.
    Fix: leave out slots with id -1 or weight 0 before anything is computed of them.
    """

    @effort.for_all(problem=_problems(subject, rows=(3, 1, 17)), share=0.5)
    def holds(problem: Problem) -> None:
        x, ids, weights, w13, w2 = problem.tensors()
        expected = _call(subject.factory(), problem, (x, ids, weights, w13, w2))
        live = set(ids[weights != 0].tolist())
        spoiled = [expert for expert in range(problem.experts) if expert not in live]
        w13[spoiled], w2[spoiled] = torch.nan, torch.nan
        found = _call(subject.factory(), problem, (x, ids, weights, w13, w2))
        if not torch.equal(found, expected):
            raise CheckFailed(f"weights of the experts {spoiled}, which no slot uses, change the output with {problem}")


@check(ExpertsSubject, when=_serves_nothing_here)
def check_experts_depend_on_their_arguments_only(subject: ExpertsSubject, effort: Effort) -> None:
    """The same arguments give the same bits, also after other calls and of another kernel, and stay as they are.

    Why: an answer with a seed is to be the same in every run, and hidden rows are used again by the next layer.
    Fix: keep nothing between calls, add in a fixed order (no atomics), and write into memory of your own.
    """

    @effort.for_all(problem=_problems(subject, rows=(17, 3, 70)), share=0.5)
    def holds(problem: Problem) -> None:
        kernel, tensors, copies = subject.factory(), problem.tensors(), problem.tensors()
        first = _call(kernel, problem, tensors)
        kept = first.clone()
        other = attrs.evolve(problem, seed=problem.seed + 1, rows=problem.rows + 1)
        _call(kernel, other, other.tensors())
        if not torch.equal(first, kept):
            raise CheckFailed(f"a later call changed the output of an earlier one, with {problem}")
        again = _call(kernel, problem, tensors)
        alone = _call(subject.factory(), problem, tensors)
        if not (torch.equal(first, again) and torch.equal(first, alone)):
            raise CheckFailed(f"called again with the same arguments it gives other bits, with {problem}")
        if not all(torch.equal(one, two) for one, two in zip(tensors, copies, strict=True)):
            raise CheckFailed(f"a call changes its arguments, with {problem}")


CHECKS: tuple[AnyCheck, ...] = (
    check_experts_say_whom_they_serve,
    check_experts_compute_their_definition,
    check_idle_experts_take_no_part,
    check_experts_depend_on_their_arguments_only,
)
