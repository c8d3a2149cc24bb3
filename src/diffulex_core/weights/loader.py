"""Loading a checkpoint into a model: plan from the headers, report every problem at once, then copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from diffulex_core.errors import CheckpointError, PluginError
from diffulex_core.protocols import DiffusionModel, WeightResolver
from diffulex_core.weights.files import StoredTensor, take_inventory
from diffulex_core.weights.ledger import Claim, Ledger
from diffulex_core.weights.types import LoadContext, ResolvedWeight


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
) -> LoadReport:
    """Fill a model from the safetensors files of `folder`.

    The model may stand on the meta device; its storage is made on `device` here, each parameter in its own dtype.
    Nothing is copied unless every parameter is filled once and every checkpoint tensor is used or skipped for a reason.

    Args:
        model: asked first where a tensor goes when it is a `WeightResolver` itself.
        resolver: asked next; a tensor that neither knows may carry the model's own name for a parameter or buffer.
        folder: the checkpoint.
        config: its parsed config.json, for resolvers.
        dtype: the engine's dtype, for resolvers.
        device: where the model shall be.
        progress: show a progress bar.
    Raises:
        CheckpointError: listing everything that is missing, extra, mis-shaped, doubled or damaged.
        PluginError: model and resolver do not belong together.
    """
    if not isinstance(model, nn.Module):
        raise PluginError(f"The model is a {type(model).__name__}; weights can only be loaded into a torch.nn.Module.")
    inventory = take_inventory(folder)
    materialise(model.requires_grad_(False), device)
    ledger = Ledger.of(model)
    context = LoadContext(
        config=config,
        full_name="",
        dtype=dtype,
        parameters=dict(model.named_parameters(remove_duplicate=False)),
        buffers=dict(model.named_buffers(remove_duplicate=False)),
    )
    for stored in inventory.tensors:
        ledger.enter(stored, _resolve(model, resolver, attrs.evolve(context, full_name=stored.name)))
    if inventory.complete:
        ledger.close(resolver)
    problems = [*inventory.problems, *ledger.problems]
    if not inventory.problems:
        problems += _different_ties(folder, ledger)
    if problems:
        raise CheckpointError(str(folder), problems)
    _copy(folder, ledger.claims, progress)
    model.eval()
    return LoadReport(
        files=inventory.files,
        tensors=len(ledger.claims),
        skipped=ledger.skipped,
        bytes=sum(target.tensor.nbytes for target in ledger.targets.values()),
    )


def materialise(model: nn.Module, device: torch.device) -> None:
    """Give every parameter and buffer storage on `device`; values are left open, tied tensors stay one tensor.

    Raises:
        PluginError: a buffer that no checkpoint holds stands on the meta device, so that its values are lost.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}  # holds the old tensor too: its id must not be used again
    persistent = model.state_dict(keep_vars=True).keys()
    for path, module in model.named_modules():
        own = [*module.named_parameters(recurse=False, remove_duplicate=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            full_name = f"{path}.{name}" if path else name
            if tensor.is_meta and full_name not in persistent:
                raise PluginError(f"Buffer {full_name!r} is not saved in checkpoints: compute it in forward().")
            if id(tensor) not in made:
                made[id(tensor)] = (tensor, _on_device(tensor, device))
            if made[id(tensor)][1] is not tensor:
                setattr(module, name, made[id(tensor)][1])


def _on_device(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device == device:
        return tensor
    moved = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.detach().to(device)
    return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved


def _resolve(model: nn.Module, resolver: WeightResolver, ctx: LoadContext) -> ResolvedWeight | None:
    name = ctx.full_name
    for asked in (model, resolver):
        resolved = asked.resolve_checkpoint_weight(name, ctx) if isinstance(asked, WeightResolver) else None
        if resolved is not None:
            return resolved
    if name in ctx.parameters:
        return ResolvedWeight(param=ctx.parameters[name])
    return ResolvedWeight(buffer=ctx.buffers[name]) if name in ctx.buffers else None


def _different_ties(folder: Path, ledger: Ledger) -> list[str]:
    return [
        f"{first.stored.name!r} and {second.stored.name!r} differ, but the model ties them"
        f" ({first.target.label(first.resolved.shard_id)})."
        for first, second in ledger.ties
        if first.stored.shape == second.stored.shape and not _equal(folder, first, second)
    ]


def _equal(folder: Path, first: Claim, second: Claim) -> bool:
    dtype = first.part.view.dtype
    a, b = (_transformed(claim, _read(folder, claim.stored)).to(dtype) for claim in (first, second))
    return torch.equal(a, b)


def _copy(folder: Path, claims: list[Claim], progress: bool) -> None:
    with tqdm(total=len(claims), desc="Loading weights", unit="tensor", disable=not progress) as bar:
        for file in dict.fromkeys(claim.stored.file for claim in claims):
            with safe_open(folder / file, framework="pt") as stored, torch.no_grad():
                for claim in claims:
                    if claim.stored.file == file:
                        _fill(claim, stored)
                        bar.update()


def _fill(claim: Claim, stored: safe_open) -> None:
    """Copy what this process holds of one tensor; only that is read unless the tensor must be transformed first."""
    name, part, dim = claim.stored.name, claim.part, claim.part.dim
    if claim.resolved.loader is not None:
        claim.resolved.loader(_transformed(claim, stored.get_tensor(name)))
        return
    whole = None
    if claim.resolved.transform is not None or not part.divided:
        whole = _transformed(claim, stored.get_tensor(name))
    if whole is not None and not part.divided:
        part.view.copy_(whole)
        return
    end = 0
    for piece in part.pieces:
        index = (slice(None),) * dim + (slice(piece.start, piece.start + piece.length),)
        if piece.length:
            source = stored.get_slice(name)[index] if whole is None else whole[index]
            part.view.narrow(dim, end, piece.length).copy_(source)
        end += piece.length
    part.view.narrow(dim, end, part.view.shape[dim] - end).zero_()


def _transformed(claim: Claim, tensor: Tensor) -> Tensor:
    return claim.resolved.transform(tensor) if claim.resolved.transform is not None else tensor


def _read(folder: Path, stored: StoredTensor) -> Tensor:
    with safe_open(folder / stored.file, framework="pt") as file:
        tensor: Tensor = file.get_tensor(stored.name)
    return tensor
