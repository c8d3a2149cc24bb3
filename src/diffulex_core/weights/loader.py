"""Loading a checkpoint into a model: plan from the headers, report every problem at once, then copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from safetensors import safe_open
from torch import Tensor, nn

from diffulex_core.errors import CheckpointError, PluginError
from diffulex_core.progress import Progress
from diffulex_core.protocols import DiffusionModel, WeightResolver
from diffulex_core.weights.contents import differ, non_finite
from diffulex_core.weights.files import take_inventory
from diffulex_core.weights.ledger import Claim, Ledger
from diffulex_core.weights.resolve import Resolution
from diffulex_core.weights.storage import fill, materialise


@attrs.frozen(kw_only=True)
class LoadReport:
    """What was loaded.

    Attributes:
        files: the files that were read.
        tensors: number of tensors copied into the model.
        skipped: checkpoint tensors left out, with reasons.
        bytes: size of the model's parameters and buffers.
    """

    files: tuple[str, ...]
    tensors: int
    skipped: Mapping[str, str]
    bytes: int


def load_weights(
    model: DiffusionModel | nn.Module,
    resolver: WeightResolver,
    folder: Path,
    config: Mapping[str, object],
    *,
    dtype: torch.dtype,
    device: torch.device,
    progress: bool = True,
    check: bool = False,
    owner: str = "",
) -> LoadReport:
    """Fill a model from the safetensors files of `folder`.

    The model may stand on the meta device; its storage is made on `device` here, each parameter in its own dtype.
    Nothing is copied unless every parameter is filled once and every checkpoint tensor is used or skipped for a reason.

    Where a tensor goes is asked of the model's own modules, then of `resolver`: see `Resolution`.

    Args:
        model: the network.
        resolver: the family's.
        folder: the checkpoint.
        config: its parsed config.json, for resolvers.
        dtype: the engine's dtype, for resolvers.
        device: where the model shall be.
        progress: show a progress bar.
        check: refuse weights that hold NaN or infinite numbers; this reads each one once more.
        owner: the model family and its plugin, for messages.
    Raises:
        CheckpointError: listing everything that is missing, extra, mis-shaped, doubled or damaged; or, with `check`,
            everything that is not finite.
        PluginError: model and resolver do not belong together.
    """
    network = as_module(model)
    inventory = take_inventory(folder)
    materialise(network.requires_grad_(False), device)
    ledger = Ledger.of(network)
    resolve = Resolution.of(network, resolver, config, dtype)
    for stored in inventory.tensors:
        ledger.enter(stored, resolve(stored.name), resolver)
    if inventory.complete:
        ledger.close(resolver)
    problems = [*inventory.problems, *ledger.problems, *differ(folder, ledger.ties)]
    if not problems:
        problems = _copy(folder, ledger.claims, progress=progress, check=check)
    if problems:
        raise CheckpointError(str(folder), problems, owner=owner)
    network.eval()
    return LoadReport(
        files=inventory.files, tensors=len(ledger.claims), skipped=ledger.skipped, bytes=ledger.model_bytes
    )


def as_module(model: DiffusionModel | nn.Module) -> nn.Module:
    """The model as a module, whose parameters can be listed.

    Raises:
        PluginError: it is none.
    """
    if not isinstance(model, nn.Module):
        raise PluginError(f"The model is a {type(model).__name__}; weights can only be loaded into a torch.nn.Module.")
    return model


def _copy(folder: Path, claims: list[Claim], *, progress: bool, check: bool) -> list[str]:
    """Copy all tensors, file by file; returns what is wrong with the numbers, if that is to be checked."""
    problems: list[str] = []
    by_file: dict[str, list[Claim]] = {}
    for claim in claims:
        by_file.setdefault(claim.stored.file, []).append(claim)
    shown = Progress(
        total=len(claims),
        shown=progress,
        log_interval=1.0,
        unit="tensor",
        doing="Loading weights",
        done="loaded",
    )
    loaded = 0
    with shown, torch.no_grad():
        for file, held in by_file.items():
            with safe_open(folder / file, framework="pt") as stored:
                for claim in held:
                    _load(claim, stored)
                    problems += non_finite(claim) if check else ()
                    loaded += 1
                    shown.update(done=loaded)
    return problems


def _load(claim: Claim, stored: safe_open) -> None:
    """Copy what this process holds of one tensor; only that is read unless the tensor must be transformed first."""
    name, transform, loader = claim.stored.name, claim.resolved.transform, claim.resolved.loader
    if claim.part.divided and transform is None and loader is None:
        fill(claim.part, stored.get_slice(name))
        return
    tensor: Tensor = stored.get_tensor(name)
    if transform is not None:
        tensor = transform(tensor)
    if loader is not None:
        loader(tensor)
    else:
        fill(claim.part, tensor)
