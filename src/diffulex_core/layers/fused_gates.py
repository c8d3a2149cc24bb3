"""The gates of an MLP on the CPU: what computes the gate applies the activation too, before anything is rounded.

An activation of its own would read and write the widest numbers of a layer several times over.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from diffulex_core.layers.moe.spec import Activation

_NAMES: Mapping[Activation, tuple[str, str]] = MappingProxyType({"silu": ("swish", ""), "gelu_tanh": ("gelu", "tanh")})
"""oneDNN's names of activations, and of the ways to compute them."""


class FusedGates(nn.Module):
    """`act(gate(x)) * up(x)`.

    As in `blocked`, a row's bits do not depend on the number of rows, as long as that is a multiple of eight.
    """

    def __init__(self, weights: tuple[Tensor, ...], biases: tuple[Tensor, ...] | None, activation: Activation) -> None:
        """Of gate and up, in this order: weights [out, in] that are laid out for oneDNN, and biases [out]."""
        super().__init__()
        self.gate, self.up = (nn.Parameter(weight, requires_grad=False) for weight in weights)
        self.biases = biases or (None, None)
        self.activation, self.algorithm = _NAMES[activation]

    def forward(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]."""
        product = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001, no public name
        gate: Tensor = product(x, self.gate, self.biases[0], self.activation, [], self.algorithm)
        return gate.mul_(product(x, self.up, self.biases[1], "none", [], ""))
