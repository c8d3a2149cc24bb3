"""The checkpoints that the families under test can be loaded from, as the conformance kit makes them up."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from diffulex_core.testing.layouts import Layout, Place, distinct, layouts_of, parts_of as held_parts
from diffulex_core.testing.stored import INDEX, write
from diffulex_core.weights import ShardId
from tests.families.subjects import Subject

__all__ = ["INDEX", "Layout", "Place", "distinct", "layouts", "parts_of", "write"]


def layouts(subject: Subject) -> Iterator[Layout]:
    """Every way to store a family's network."""
    yield from layouts_of(subject.network(), subject.resolver, subject.config)


def parts_of(network: nn.Module, *, smallest: bool = False) -> dict[tuple[tuple[str, ...], ShardId | None], Tensor]:
    """What a process holds of each checkpoint tensor, by the parameter's names and the part."""
    return {key: part.view for key, part in held_parts(network, smallest=smallest).items()}
