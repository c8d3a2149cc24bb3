"""The values and protocols of weight loading; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

from diffulex_core.distributed.ranges import Range, whole
from diffulex_core.errors import PluginError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

ShardId = str | int
"""Name of one part of a packed parameter: "q", "gate", or an index."""


@attrs.frozen(kw_only=True, eq=False)
class LoadContext:
    """What a resolver may look at.

    Attributes:
        config: the parsed config.json.
        full_name: the tensor's name in the checkpoint.
        dtype: dtype of the engine.
        parameters, buffers: the model's own, by name; a tied parameter is found under each of its names.
    """

    config: Mapping[str, object]
    full_name: str
    dtype: torch.dtype
    parameters: Mapping[str, nn.Parameter]
    buffers: Mapping[str, Tensor]


@attrs.frozen(kw_only=True, eq=False)
class ResolvedWeight:
    """Where one checkpoint tensor goes: into a parameter, into a buffer, or nowhere for a stated reason.

    Attributes:
        param: target parameter.
        buffer: target buffer.
        shard_id: the part of a packed target that is filled; None fills it whole.
        transform: applied to the tensor first (transpose, split, reshape). It is also called with a meta tensor, to
            check shapes before anything is read.
        loader: called with the transformed tensor in place of the copy; `param` or `buffer` still names what it fills.
        skip: why the tensor is left out.
        copied: the checkpoint may hold this tensor under several names; every one that is there must be equal.
    Raises:
        PluginError: the fields contradict each other.
    """

    param: nn.Parameter | None = None
    buffer: Tensor | None = None
    shard_id: ShardId | None = None
    transform: Callable[[Tensor], Tensor] | None = None
    loader: Callable[[Tensor], None] | None = None
    skip: str | None = None
    copied: bool = False

    def __attrs_post_init__(self) -> None:
        targets = [name for name in ("param", "buffer", "skip") if self._given(name)]
        if len(targets) != 1:
            advice = (
                " Name what the loader fills, too: it is counted as written." if self.loader and not targets else ""
            )
            given = " and ".join(targets) or "none"
            raise PluginError(f"ResolvedWeight needs exactly one of param, buffer and skip, not {given}.{advice}")
        if self.skip is not None and (not self.skip or self.shard_id is not None or self.transform or self.loader):
            raise PluginError("ResolvedWeight(skip=...) takes a reason in words and nothing else.")

    @property
    def target(self) -> Tensor | None:
        """The parameter or buffer to fill; None for a skipped tensor."""
        return self.param if self.param is not None else self.buffer

    def _given(self, name: str) -> bool:
        return {"param": self.param, "buffer": self.buffer, "skip": self.skip}[name] is not None


@attrs.frozen(kw_only=True, eq=False)
class Part:
    """What this process holds of one checkpoint tensor.

    Attributes:
        view: the storage. Along `dim` it holds the pieces one after another, then zeros where it is longer.
        dim: the dimension that is divided among processes.
        pieces: ranges along `dim` of the checkpoint tensor; empty when other processes hold all of it.
        size: length of the checkpoint tensor along `dim`.
        covers: names of the smaller parts that this one fills together, for a checkpoint that stores them stacked. The
            part under None covers all.
    """

    view: Tensor
    dim: int = 0
    pieces: tuple[Range, ...] = ()
    size: int = 0
    covers: tuple[ShardId, ...] = ()

    @classmethod
    def whole(cls, view: Tensor) -> Part:
        """A checkpoint tensor that is held whole."""
        size = view.shape[0] if view.dim() else 1
        return cls(view=view, pieces=(whole(size),), size=size)

    @classmethod
    def of(cls, view: Tensor, held: Range, *, dim: int = 0, covers: tuple[ShardId, ...] = ()) -> Part:
        """One range of a checkpoint tensor."""
        return cls(view=view, dim=dim, pieces=(held,), size=held.size, covers=covers)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole checkpoint tensor."""
        return tuple(self.size if dim == self.dim else length for dim, length in enumerate(self.view.shape))

    @property
    def divided(self) -> bool:
        """Whether some of the tensor is held elsewhere."""
        return self.pieces != (whole(self.size),)


@runtime_checkable
class PartedModule(Protocol):
    """A module whose parameters hold several checkpoint tensors, or a share of one."""

    def parts(self, parameter: str) -> Mapping[ShardId | None, Part]:
        """What fills one of the module's own parameters or buffers.

        The key None stands for a checkpoint tensor that fills all of it; the other keys name its parts.
        """
        ...


@runtime_checkable
class ExplainsStrays(Protocol):
    """A resolver that can say what tensors mean that the model has no place for; it makes messages more useful."""

    def explain(self, name: str) -> str:
        """What it means that the checkpoint holds `name`, in a sentence without full stop; empty when it cannot say."""
        ...


@runtime_checkable
class NamesSources(Protocol):
    """A resolver that can say which checkpoint tensor it expects for a target; it makes messages more useful."""

    def sources(self, target: str, shard_id: ShardId | None) -> Sequence[str]:
        """Checkpoint names that would fill the parameter or buffer called `target`."""
        ...
