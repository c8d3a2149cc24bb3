"""Rotary position embedding, half-split: dimension `j` is paired with `j + rotary_dim / 2`."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor


@attrs.frozen(kw_only=True)
class Rope:
    """Frequencies `theta ** (-2j / rotary_dim)`, `j` in `[0, rotary_dim / 2)`.

    From `j = turning` on they are 0, so that these pairs pass through ("proportional" RoPE); None = all turn.

    It holds no table: cosines and sines are computed once for each forward and handed down.
    """

    theta: float
    rotary_dim: int
    turning: int | None = None

    def rotation(self, positions: Tensor) -> Rotation:
        """[rows] positions -> the rotation of each row.

        Angles are fp32. Powers, cosines and sines are taken in fp64 and rounded: vectorised and scalar routines of a
        CPU may differ in the last bit of fp32, so that a row's bits would depend on where it stands in the batch.
        """
        exponent = torch.arange(0, self.rotary_dim, 2, dtype=torch.float64, device=positions.device) / self.rotary_dim
        frequency = (self.theta**-exponent).float()
        if self.turning is not None:
            frequency[self.turning :] = 0
        angle = (positions.float()[:, None] * frequency).double()  # [rows, rotary_dim / 2]
        return Rotation(cos=angle.cos().float()[:, None], sin=angle.sin().float()[:, None])


@attrs.define(kw_only=True, eq=False)  # torch.compile cannot follow the constructor of a frozen one
class Rotation:
    """Rotation of each row's heads, the same in every layer.

    Attributes:
        cos, sin: [rows, 1, rotary_dim / 2] float32.
    """

    cos: Tensor
    sin: Tensor
    _wide_cos: Tensor = attrs.field(init=False)
    _wide_sin: Tensor = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # Both halves at once: fewer passes over them than half by half, with the same products and sums.
        self._wide_cos = torch.cat((self.cos, self.cos), dim=-1)
        self._wide_sin = torch.cat((-self.sin, self.sin), dim=-1)

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, heads, head_dim] -> the same, its leading dimensions rotated in fp32 and cast back."""
        half = self.cos.shape[-1]
        wide = x.float()
        turning, rest = wide[..., : 2 * half], wide[..., 2 * half :]
        a, b = turning.split(half, dim=-1)
        turned = (turning * self._wide_cos).add_(torch.cat((b, a), dim=-1).mul_(self._wide_sin))
        return (torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned).to(x.dtype)
