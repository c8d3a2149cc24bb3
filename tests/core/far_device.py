"""A device that is none: its tensors hold real numbers, and every operation that makes the host wait for it is noted.

It calls itself "meta", so that code takes the paths of devices other than the CPU. Tensors of it cannot be read by the
host but through a copy, as those of a GPU, and operations that mix its tensors with the host's raise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from diffulex_core.graphs.waits import wait_of

FAR = torch.device("meta")
_TAKES_HOST_SCALARS = ("aten::index", "aten::index_put", "aten::index_put_")


class FarTensor(Tensor):
    """A tensor of the far device; `near` holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> FarTensor:
        made: FarTensor = Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=FAR,
        )
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise RuntimeError(f"{func} on a tensor of the far device, outside of it")


@contextmanager
def far_device() -> Iterator[list[str]]:
    """While it lasts the far device is there; gives why the host waited for it, once for each time."""
    waits = list[str]()
    with _Constants(), _Operations(waits):
        yield waits


class _Operations(TorchDispatchMode):
    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        with self:
            whole = func.decompose(*args, **given)
        if whole is not NotImplemented:
            return whole
        reason = wait_of(func, args, given)
        if reason is not None:
            self._waits.append(reason)
        leaves = tree_leaves((args, given))
        far = [leaf for leaf in leaves if isinstance(leaf, FarTensor)]
        _refuse_mixtures(func, leaves, far)
        wanted = given.get("device")
        if wanted is not None:
            given["device"] = torch.device("cpu")
        out = func(*tree_map(_near, args), **tree_map(_near, given))
        if not (far if wanted is None else wanted == FAR):
            return out
        same = {id(each.near): each for each in far}
        return tree_map(lambda leaf: _far(leaf, same), out)


class _Constants(TorchFunctionMode):
    """Tensors that are made of Python numbers are made on the host and copied, which waits."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and given.get("device") is not None:
            device = given.pop("device")
            return func(*args, **given).to(device)
        return func(*args, **given)


def _near(leaf: Any) -> Any:
    return leaf.near if isinstance(leaf, FarTensor) else leaf


def _far(leaf: Any, same: Mapping[int, FarTensor]) -> Any:
    """Tensors of the far device; operations in place give the tensor that they were given."""
    if not isinstance(leaf, Tensor):
        return leaf
    return same[id(leaf)] if id(leaf) in same else FarTensor(leaf)


def _refuse_mixtures(func: Any, leaves: Sequence[Any], far: Sequence[FarTensor]) -> None:
    copies = func.name().partition(".")[0] in ("aten::copy_", "aten::_to_copy", *_TAKES_HOST_SCALARS)
    near = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, FarTensor) and leaf.ndim]
    if far and near and not copies:
        raise RuntimeError(f"{func} is given tensors of the host and of the far device")
