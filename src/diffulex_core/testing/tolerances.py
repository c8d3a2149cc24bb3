"""How close logits must be: one table by dtype and attention backend, and comparisons that do not trip over ties."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs
import torch
from torch import Tensor

from diffulex_core.testing.check import CheckFailed


@attrs.frozen(kw_only=True)
class Tolerance:
    """Two numbers are equal when they differ by at most `absolute` plus `relative` times the expected one's size."""

    absolute: float
    relative: float

    def allowed(self, expected: Tensor) -> Tensor:
        """How far from each of these numbers another one may be."""
        return self.absolute + self.relative * expected.abs()


_EXACT = Tolerance(absolute=1e-4, relative=1e-4)
_HALF = Tolerance(absolute=5e-3, relative=1e-2)
_BRAIN = Tolerance(absolute=3e-2, relative=4e-2)

TOLERANCES: Mapping[tuple[torch.dtype, str], Tolerance] = MappingProxyType({
    (torch.float64, "dense"): Tolerance(absolute=1e-9, relative=1e-9),
    (torch.float32, "dense"): _EXACT,
    (torch.float16, "dense"): _HALF,
    (torch.bfloat16, "dense"): _BRAIN,
    # The matrix products of devices round inputs to fewer bits in places.
    (torch.float32, "device"): Tolerance(absolute=2e-3, relative=2e-3),
    (torch.float16, "device"): _HALF,
    (torch.bfloat16, "device"): _BRAIN,
})  # fmt: skip
"""By the network's dtype and the backend: "dense" for the kit's own on a CPU, "device" for kernels of a device."""


def require_close(got: Tensor, expected: Tensor, what: str, *, backend: str = "dense") -> None:
    """Raise `CheckFailed` unless two rows of logits are the same: close, and of one mind where that mind is clear.

    The most probable token must be the same wherever the expected one leads the second by more than the tolerance.

    Args:
        got, expected: [rows, columns], compared with the tolerance of `got`'s dtype.
        what: begins the message.
    """
    if got.shape != expected.shape:
        raise CheckFailed(f"{what}: expected shape {list(expected.shape)}, got {list(got.shape)}.")
    tolerance = TOLERANCES[got.dtype, backend]
    got, expected = got.double(), expected.double()
    if not bool(got.isfinite().all()):
        row = int((~got.isfinite()).any(-1).nonzero()[0])
        raise CheckFailed(f"{what}: row {row} holds numbers that are not finite.")
    allowed = tolerance.allowed(expected)
    excess = (got - expected).abs() - allowed
    if excess.numel() and float(excess.max()) > 0:
        row, column = divmod(int(excess.argmax()), excess.shape[-1])
        far, most = float((got - expected)[row, column].abs()), float(allowed[row, column])
        raise CheckFailed(f"{what}: row {row} is off by {far:.2g} in column {column}; allowed is {most:.2g}.")
    if expected.shape[-1] > 1:
        best = expected.topk(2, dim=-1)
        clear = best.values[:, 0] - best.values[:, 1] > 2 * allowed.amax(-1)
        wrong = clear & (got.argmax(-1) != best.indices[:, 0])
        if bool(wrong.any()):
            raise CheckFailed(f"{what}: another token is the most probable in row {int(wrong.nonzero()[0])}.")


def rows_that_differ(got: Tensor, expected: Tensor, *, backend: str = "dense") -> list[bool]:
    """For each row of two equally shaped tensors whether it is another one: NaN, or off by more than the tolerance."""
    tolerance = TOLERANCES[got.dtype, backend]
    far = (got.double() - expected.double()).abs() > tolerance.allowed(expected.double())
    return (far | ~got.isfinite()).flatten(1).any(1).tolist()
