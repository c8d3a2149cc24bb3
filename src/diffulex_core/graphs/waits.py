"""Operations that make the host wait for the device: found as they are dispatched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_SIZED_BY_CONTENTS = frozenset(
    {
        "aten::_local_scalar_dense",
        "aten::item",
        "aten::nonzero",
        "aten::masked_select",
        "aten::_unique2",
        "aten::unique_dim",
        "aten::unique_consecutive",
        "aten::bincount",
        "aten::repeat_interleave.Tensor",
        "aten::equal",
        "aten::is_nonzero",
    }
)
"""Their result, or its size, is needed on the host."""
_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_")


def wait_of(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Why one operation makes the host wait for the device, or None.

    Args:
        operation: the overload that is dispatched.
        args, kwargs: its arguments, some of them on a device.
    """
    name, _, overload = operation.name().partition(".")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    places = {tensor.device.type for tensor in tensors if tensor.ndim}
    if name in _SIZED_BY_CONTENTS or f"{name}.{overload}" in _SIZED_BY_CONTENTS:
        return f"{name} needs numbers of the device on the host" if _far(tensors) else None
    if name in _INDEXING and any(tensor.dtype in (torch.bool, torch.uint8) for tensor in _indices(args)):
        return f"{name} with a mask needs the number of its rows on the host" if _far(tensors) else None
    if name == "aten::_to_copy":
        return _copied(args[0].device, torch.device(kwargs.get("device") or args[0].device), kwargs)
    if name == "aten::copy_":
        waits = len(args) < 3 or not args[2]
        return _copied(args[1].device, args[0].device, {"non_blocking": not waits}) if args[1].ndim else None
    if "cpu" in places and places - {"cpu"}:
        return f"{name} copies a tensor of the host to the device, and waits for that"
    return None


def _copied(source: torch.device, target: torch.device, kwargs: Mapping[str, Any]) -> str | None:
    if source.type == target.type:
        return None
    if target.type == "cpu":
        return "a tensor is copied to the host"
    return None if kwargs.get("non_blocking") else "a tensor is copied to the device without non_blocking"


def _far(tensors: Sequence[Tensor]) -> bool:
    return any(tensor.device.type != "cpu" for tensor in tensors)


def _indices(args: Sequence[Any]) -> list[Tensor]:
    return [each for each in args[1] if isinstance(each, Tensor)]


class WaitsAreRefused(TorchDispatchMode):
    """While it is entered, an operation that makes the host wait for a device raises."""

    def __init__(self, error: Callable[[str], Exception]) -> None:
        """`error` makes the exception of a sentence that says what waits."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._error = error

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        with self:  # in inference mode operations come whole that are made of others
            whole = func.decompose(*args, **given)
        if whole is not NotImplemented:
            return whole
        reason = wait_of(func, args, given)
        if reason is not None:
            raise self._error(reason)
        return func(*args, **given)
