"""The gated MLP."""

from __future__ import annotations

from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.distributed.ranges import even_range
from diffulex_core.layers.activations import ACTIVATIONS
from diffulex_core.layers.fused_gates import FusedGates
from diffulex_core.layers.linear import PackedLinear, RowLinear
from diffulex_core.layers.moe.spec import Activation


class GatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))`, gate and up in one multiplication, or as `FusedGates` in its place."""

    gate_up: PackedLinear | FusedGates

    def __init__(
        self, ctx: BuildContext, hidden_size: int, size: int, *, activation: Activation = "silu", bias: bool = False
    ) -> None:
        super().__init__()
        held = even_range(size, ctx.tp, "the width of the MLP")
        self.gate_up = PackedLinear(ctx, hidden_size, {"gate": held, "up": held}, bias=bias)
        self.down = RowLinear(ctx, size, hidden_size, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.kernels, self.gate = ctx.kernels, activation

    def forward(self, x: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, hidden]."""
        out: Tensor = self.down(self._gated(x))
        return out

    def addend(self, x: Tensor) -> Tensor:
        """As `forward`, of this process alone: the sum over the processes is left to the caller."""
        return self.down.addend(self._gated(x))

    def _gated(self, x: Tensor) -> Tensor:
        if isinstance(self.gate_up, FusedGates):
            fused: Tensor = self.gate_up(x)
            return fused
        packed = self.gate_up(x)
        if self.kernels is not None:
            return self.kernels.gated(packed, self.gate)
        gate, up = self.gate_up.split(packed)
        return self.activation(gate).mul_(up)
