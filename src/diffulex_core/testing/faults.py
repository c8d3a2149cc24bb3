"""Ways in which a checkpoint can be corrupt, each done to a tensor of its own."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from diffulex_core.testing.layouts import Layout, Place, distinct
from diffulex_core.testing.stored import INDEX, save_in_order


@attrs.frozen(eq=False)
class Fault(ABC):
    """One fault.

    Attributes:
        name: the tensor at fault.
        place: what it should fill.
    """

    name: str
    place: Place

    @property
    @abstractmethod
    def words(self) -> tuple[str, ...]:
        """What the one sentence about it must name."""

    @property
    def target(self) -> str:
        """The parameter's name in the network, as messages quote it."""
        return repr(self.place.names[0])

    @abstractmethod
    def damage(self, tensors: dict[str, Tensor]) -> None:
        """Change the tensors before they are written."""


class Missing(Fault):
    """Neither the index nor a file has it."""

    @property
    def words(self) -> tuple[str, ...]:
        """The parameter; the tensor too where the resolver can say which."""
        return ("Nothing fills", self.target)

    def damage(self, tensors: dict[str, Tensor]) -> None:
        """Leave it out."""
        del tensors[self.name]


class Extra(Fault):
    """The checkpoint holds another tensor, for which the network has no place."""

    @property
    def words(self) -> tuple[str, ...]:
        """The strange tensor."""
        return (repr(f"{self.name}.surprise"), "has no place", ".safetensors")

    def damage(self, tensors: dict[str, Tensor]) -> None:
        """Add it."""
        tensors[f"{self.name}.surprise"] = torch.zeros(2, 3)


class Misshaped(Fault):
    """It has one number too many along its first dimension."""

    @property
    def words(self) -> tuple[str, ...]:
        """Tensor, parameter and file."""
        return (repr(self.name), self.target, "has shape", ".safetensors")

    def damage(self, tensors: dict[str, Tensor]) -> None:
        """Lengthen it."""
        tensors[self.name] = torch.cat((tensors[self.name], tensors[self.name][:1]))


class WholeNumbers(Fault):
    """It holds integers."""

    @property
    def words(self) -> tuple[str, ...]:
        """Tensor, parameter, dtype and file."""
        return (repr(self.name), self.target, "I32", ".safetensors")

    def damage(self, tensors: dict[str, Tensor]) -> None:
        """Round it."""
        tensors[self.name] = tensors[self.name].to(torch.int32)


class Truncated(Fault):
    """Its file is cut off."""

    file = "cut.safetensors"

    @property
    def words(self) -> tuple[str, ...]:
        """The file."""
        return ("damaged or cut off", self.file)

    def damage(self, tensors: dict[str, Tensor]) -> None:
        """Leave the tensors: the file is cut once it is written."""


FAULTS: Sequence[type[Fault]] = (Missing, Extra, Misshaped, WholeNumbers, Truncated)


def corrupt(layout: Layout, folder: Path, kinds: Sequence[type[Fault]] = FAULTS) -> list[Fault]:
    """Write a checkpoint with these faults over several files with an index.

    Returns:
        The faults that were made, each of another tensor, as many as there are tensors that take one.
    """
    faults = list(_choose(layout, kinds))
    tensors = distinct(layout)
    for fault in faults:
        fault.damage(tensors)
    homes = {name: f"part-{place % 3}.safetensors" for place, name in enumerate(tensors)}
    homes |= {fault.name: Truncated.file for fault in faults if isinstance(fault, Truncated)}
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(set(homes.values())):
        save_in_order({name: tensor for name, tensor in tensors.items() if homes[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": homes}))
    if Truncated.file in homes.values():
        path = folder / Truncated.file
        path.write_bytes(path.read_bytes()[:-4])
    return faults


def _choose(layout: Layout, kinds: Sequence[type[Fault]]) -> Iterator[Fault]:
    """A tensor for each kind, spread over the checkpoint."""
    copied = {name for names in layout.copies() for name in names}
    single = [
        name
        for name, place in layout.places.items()
        if name not in copied and not place.transformed and place.dtype.is_floating_point and place.shape
    ]
    step = max(1, len(single) // len(kinds))
    for kind, name in zip(kinds, single[::step], strict=False):
        yield kind(name, layout.places[name])
