"""The gated MLP."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from diffulex_core.context import BuildContext
from diffulex_core.distributed.ranges import even_range
from diffulex_core.layers.linear import PackedLinear, RowLinear
from diffulex_core.layers.spec import DecoderSpec


class GatedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`, gate and up in one multiplication."""

    def __init__(self, ctx: BuildContext, spec: DecoderSpec) -> None:
        super().__init__()
        held = even_range(spec.ffn_size, ctx.tp, "the width of the MLP")
        self.gate_up = PackedLinear(ctx, spec.hidden_size, {"gate": held, "up": held}, bias=spec.mlp_bias)
        self.down = RowLinear(ctx, spec.ffn_size, spec.hidden_size, bias=spec.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, hidden]."""
        gate, up = self.gate_up.split(self.gate_up(x))
        out: Tensor = self.down(silu(gate) * up)
        return out


def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`, whose bits do not depend on where a number stands in the tensor.

    torch's own CPU kernel computes the end of a loop by other instructions than its middle, with other last bits.
    """
    if x.device.type != "cpu":
        return functional.silu(x)
    wide = x.float()
    return (wide / (1 + (-wide).exp())).to(x.dtype)
