"""A model's storage: made on the device that it is meant for, and filled share by share."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from diffulex_core.errors import PluginError
from diffulex_core.weights.types import Part


class Sliced(Protocol):
    """A tensor, or one in a file of which only the wanted range is read."""

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor: ...


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


def fill(part: Part, source: Tensor | Sliced) -> None:
    """Copy what this process holds of a tensor into its place, in the place's dtype, zeros behind it."""
    if not part.divided:
        assert isinstance(source, Tensor), "an undivided tensor is read whole"
        part.view.copy_(source)
        return
    end = 0
    for piece in part.pieces:
        if piece.length:
            index = (slice(None),) * part.dim + (slice(piece.start, piece.start + piece.length),)
            part.view.narrow(part.dim, end, piece.length).copy_(source[index])
        end += piece.length
    part.view.narrow(part.dim, end, part.view.shape[part.dim] - end).zero_()


def _on_device(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device == device:
        return tensor
    moved = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.detach().to(device)
    return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
