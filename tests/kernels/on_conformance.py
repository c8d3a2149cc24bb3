"""The conformance checks of everything that is written in Triton, where Triton's interpreter lets it run on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffulex_core.kernels.on_triton import interpreted
from diffulex_core.testing import BoundCheck, checks_for
from diffulex_core.testing.checks.attention import check_attention_batch_mates_change_no_bit

FOUND = [bound for name in ("triton", "moe_gemm.triton") for bound in checks_for(name) if bound.reason_against is None]
CHECKS = [bound for bound in FOUND if bound.check is not check_attention_batch_mates_change_no_bit]
BATCH_MATES = [bound for bound in FOUND if bound not in CHECKS]


def test_attention_layers_and_experts_are_among_them() -> None:
    assert {bound.subject.label.split()[0] for bound in CHECKS} == {"attention", "layer_kernels", "kernel"}


@pytest.mark.slow
@pytest.mark.parametrize("bound", CHECKS, ids=lambda bound: bound.id)
def test_a_kernel_in_triton_passes_the_checks_of_its_kind(bound: BoundCheck) -> None:
    bound()


def row_by_row(builder: object, left: Any, right: Any, start: Any, *how: object) -> Any:
    """A tile's product as a device computes it: numpy's rounds a row by its place in the tile."""
    from triton.runtime.interpreter import TensorHandle

    dtype = start.data.dtype
    terms = [
        column[:, None] * row for column, row in zip(left.data.T.astype(dtype), right.data.astype(dtype), strict=True)
    ]
    return TensorHandle(np.add.accumulate(terms)[-1] + start.data, start.dtype.scalar)


if interpreted():

    @pytest.mark.slow
    def test_batch_mates_change_no_bit_but_for_how_numpy_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
        """Of sequences that are short enough for their keys not to be divided; of others the check says nothing."""
        from triton.runtime.interpreter import InterpreterBuilder

        monkeypatch.setattr(InterpreterBuilder, "create_dot", row_by_row)
        [bound] = BATCH_MATES
        bound()
