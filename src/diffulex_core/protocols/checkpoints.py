"""Where a model's files are, and where each tensor of them goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    from diffulex_core.weights.types import LoadContext, ResolvedWeight


@runtime_checkable
class WeightResolver(Protocol):
    """Says where each checkpoint tensor goes. `WeightRules` covers the usual cases."""

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        """Target of the checkpoint tensor `name`, or None when it is not expected."""
        ...


@runtime_checkable
class ModelSource(Protocol):
    """Turns a model's name into a directory that holds its files."""

    def resolve(self, name: str) -> Path | None:
        """The directory, or None when this source does not know the name.

        Raises:
            CheckpointError: the name is this source's, but its files cannot be had; says why.
        """
        ...
