"""Weights laid out for the CPU's matrix kernels once, instead of in every forward.

torch multiplies fp32 by MKL, which leaves half of the vector width of other makers' CPUs unused, and re-orders bf16
weights in every call. oneDNN, which torch ships too, keeps weights in blocks of its own. There a row's bits do not
depend on the number of rows either, as long as that is a multiple of eight.
"""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffulex_core.layers.fused_gates import FusedGates
from diffulex_core.layers.linear import Multiplies, PackedLinear
from diffulex_core.layers.mlp import GatedMLP
from diffulex_core.layers.moe.spec import Activation
from diffulex_core.protocols import DiffusionModel
from diffulex_core.weights.loader import as_module

DTYPES = (torch.float32, torch.bfloat16)
"""Those that oneDNN computes on CPUs in general; it refuses bf16 where it would be slow."""


def block_weights(network: DiffusionModel | nn.Module) -> int:
    """Lay out the weights of all linear layers on the CPU that nothing else has taken in hand.

    A layer's `weight` keeps its shape and dtype, and `to_dense()` gives its numbers back; only its layout differs. One
    that is also an embedding is laid out in a copy. The gates of an MLP become `FusedGates`.

    Args:
        network: with its final weights.
    Returns:
        How many layers were laid out; 0 where this torch or CPU cannot.
    """
    laid_out, able = 0, {dtype for dtype in DTYPES if usable(dtype)}
    for layer in as_module(network).modules():
        if isinstance(layer, GatedMLP) and layer.kernels is None:
            gates = layer.gate_up
            if isinstance(gates, PackedLinear) and _free(gates, able):
                layer.gate_up = _fused(gates, layer.gate)
                laid_out += 1
        elif isinstance(layer, Multiplies) and _free(layer, able):
            layer.weight = nn.Parameter(blocked(layer.weight.detach()), requires_grad=False)
            layer.multiply = multiply
            laid_out += 1
    return laid_out


def _free(layer: Multiplies, able: Container[torch.dtype]) -> bool:
    """Whether nothing else has taken the layer in hand, and this can be done."""
    weight = layer.weight
    usual = layer.multiply is functional.linear
    return usual and weight.device.type == "cpu" and weight.dtype in able and weight.numel() > 0


def _fused(gates: PackedLinear, activation: Activation) -> FusedGates:
    weights = tuple(blocked(part) for part in gates.split(gates.weight.detach(), dim=0))
    return FusedGates(weights, None if gates.bias is None else gates.split(gates.bias, dim=0), activation)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x Wᵀ (+ b)` with a weight that was laid out: [rows, in] -> [rows, out]."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001, no public name
    return product


def usable(dtype: torch.dtype) -> bool:
    """Whether this torch and this CPU multiply weights that were laid out."""
    if dtype not in DTYPES or not torch.backends.mkldnn.is_available():
        return False
    ones = torch.ones(8, 8, dtype=dtype)
    try:
        return bool((multiply(ones, blocked(ones), None) == 8).all())
    except (AttributeError, RuntimeError):  # of a torch without these operations, of a CPU without the kernels
        return False


def blocked(weight: Tensor) -> Tensor:
    """A weight [out, in] as `multiply` takes it."""
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)  # noqa: SLF001, no public name
    return laid_out
