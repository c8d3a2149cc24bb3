"""Activations of gated MLPs, with bits that do not depend on where a number stands in a tensor.

torch's own CPU kernels compute the end of a loop by other instructions than its middle, with other last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from diffulex_core.layers.moe.spec import Activation

_GELU_RATE = 1.5957691216057308
"""`2 sqrt(2 / pi)`."""


def sigmoid(x: Tensor) -> Tensor:
    """`1 / (1 + exp(-x))` in the dtype of `x`, computed in fp32."""
    if x.device.type != "cpu":
        return x.sigmoid()
    return (1 / (1 + (-x.float()).exp())).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`."""
    if x.device.type != "cpu":
        return functional.silu(x)
    wide = x.float()
    below = (-wide).exp_().add_(1)
    return torch.div(wide, below, out=below).to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """`x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x³)))`, by way of `(1 + tanh z) / 2 = sigmoid(2 z)`."""
    if x.device.type != "cpu":
        return functional.gelu(x, approximate="tanh")
    wide = x.float()
    return (wide / (1 + (-_GELU_RATE * (wide + 0.044715 * wide * wide * wide)).exp())).to(x.dtype)


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = MappingProxyType({"silu": silu, "gelu_tanh": gelu_tanh})
"""By the names that specs use."""
