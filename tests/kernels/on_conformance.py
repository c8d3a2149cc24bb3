"""The conformance checks of everything that is written in Triton, where Triton's interpreter lets it run on a CPU."""

from __future__ import annotations

import pytest

from diffulex_core.testing import BoundCheck, checks_for

CHECKS = [
    bound
    for name in ("triton", "moe_gemm.triton")
    for bound in checks_for(name)
    # Keys are divided by how much there is to do, so that bits depend on batch mates, which is recommended against.
    if bound.reason_against is None and bound.check.level == "required"
]


def test_attention_layers_and_experts_are_among_them() -> None:
    assert {bound.subject.label.split()[0] for bound in CHECKS} == {"attention", "layer_kernels", "kernel"}


@pytest.mark.slow
@pytest.mark.parametrize("bound", CHECKS, ids=lambda bound: bound.id)
def test_a_kernel_in_triton_passes_the_checks_of_its_kind(bound: BoundCheck) -> None:
    bound()
