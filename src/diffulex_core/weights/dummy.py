"""Random weights in place of a checkpoint's, for benchmarks and tests."""

from __future__ import annotations

from zlib import crc32

import torch
from torch import Tensor, nn

from diffulex_core.protocols import DiffusionModel
from diffulex_core.weights.ledger import Ledger, Target
from diffulex_core.weights.loader import LoadReport, as_module
from diffulex_core.weights.storage import fill, materialise
from diffulex_core.weights.types import ShardId


def dummy_weights(model: DiffusionModel | nn.Module, *, device: torch.device, seed: int = 0) -> LoadReport:
    """Fill a model with seeded random numbers, without any file.

    Each tensor that a checkpoint would hold is drawn by its own seed and divided as a stored one would be, so that the
    processes of a group hold shares of one and the same model. Matrices are uniform with the variance 1 / inputs, other
    weights lie within 0.1 of 1, biases within 0.1 of 0; whole numbers are 0.

    Args:
        model: may stand on the meta device; its storage is made on `device`, each parameter in its own dtype.
        device: where the model shall be, and where the numbers are drawn: devices draw different ones.
        seed: the same seed gives the same model.
    """
    network = as_module(model)
    materialise(network.requires_grad_(False), device)
    ledger = Ledger.of(network)
    drawn = 0
    with torch.no_grad():
        for target in ledger.targets.values():
            for shard in target.leaves(None):
                if target.parts[shard].view.numel():
                    fill(target.parts[shard], _draw(target, shard, torch.Generator(device), seed))
                    drawn += 1
    network.eval()
    return LoadReport(files=(), tensors=drawn, skipped={}, bytes=ledger.model_bytes)


def _draw(target: Target, shard: ShardId | None, generator: torch.Generator, seed: int) -> Tensor:
    """A whole tensor of the form that a checkpoint stores for one part."""
    part, name = target.parts[shard], target.names[0]
    if not part.view.is_floating_point():
        return torch.zeros(part.shape, dtype=part.view.dtype, device=part.view.device)
    generator.manual_seed(crc32(f"{seed}/{name}/{shard}".encode()))
    if len(part.shape) > 1:
        middle, reach = 0.0, (3 / part.shape[-1]) ** 0.5
    else:
        middle, reach = float(not name.endswith("bias")), 0.1
    numbers = torch.empty(part.shape, device=part.view.device)
    return numbers.uniform_(middle - reach, middle + reach, generator=generator)
