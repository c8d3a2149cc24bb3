"""Counting how often each number of a network is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Writes(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        counts: by parameter or buffer, in its shape.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        own = {id(tensor): (name, tensor) for name, tensor in network.state_dict(keep_vars=True).items()}
        self.counts = {name: torch.zeros(tensor.shape, dtype=torch.int32) for name, tensor in own.values()}
        self._owners = {tensor.untyped_storage().data_ptr(): (name, tensor) for name, tensor in own.values()}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        arguments = func._schema.arguments  # noqa: SLF001 - torch names the written arguments nowhere else
        named = {argument.name: value for argument, value in zip(arguments, args, strict=False)} | dict(kwargs or {})
        for argument in arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in _pytree.tree_leaves(named.get(argument.name)):
                    self._note(tensor)
        return func(*args, **(kwargs or {}))

    def _note(self, written: object) -> None:
        if not isinstance(written, Tensor) or not written.numel():
            return
        found = self._owners.get(written.untyped_storage().data_ptr())
        if found is not None:
            name, owner = found
            offset = written.storage_offset() - owner.storage_offset()
            self.counts[name].as_strided(written.shape, written.stride(), offset).add_(1)
