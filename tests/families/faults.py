"""The kit's faults of checkpoints as our own resolvers name them, and two more, each done to a tensor of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from diffulex_core.testing import faults
from diffulex_core.testing.faults import Extra, Fault, Misshaped, WholeNumbers
from tests.families.layouts import INDEX, Layout, distinct


class Missing(faults.Missing):
    """Neither the index nor a file has it, and our resolvers can say what it is called."""

    @property
    def words(self) -> tuple[str, ...]:
        return (*super().words, repr(self.name))


class CopiesDiffer(Fault):
    """Two copies of one tensor are not equal."""

    @property
    def words(self) -> tuple[str, ...]:
        return (repr(self.name), self.target, "differ", ".safetensors")

    def damage(self, tensors: dict[str, Tensor]) -> None:
        tensors[self.name] = tensors[self.name].flip(0)


class StoredTwice(Fault):
    """A second file of the index holds it too."""

    file = "again.safetensors"

    @property
    def words(self) -> tuple[str, ...]:
        return (repr(self.name), "stored twice", self.file, "part-")

    def damage(self, tensors: dict[str, Tensor]) -> None:
        """Leave the tensors: the second file is written beside the others."""


class Truncated(faults.Truncated):
    """Its file is cut off, and nothing else is in it."""

    @property
    def words(self) -> tuple[str, ...]:
        return (*super().words, repr(self.name))


FAULTS: Sequence[type[Fault]] = (Missing, Extra, Misshaped, WholeNumbers, CopiesDiffer, StoredTwice, Truncated)


def corrupt(layout: Layout, folder: Path, kinds: Sequence[type[Fault]]) -> list[Fault]:
    """Write a checkpoint with these faults over several files with an index.

    Returns:
        The faults that were made, each of another tensor: copies differ where there are copies, and the other faults
        are as many as there are matrices without copies.
    """
    faults = list(_choose(layout, kinds))
    tensors = distinct(layout)
    for fault in faults:
        fault.damage(tensors)
    homes = {name: f"part-{place % 3}.safetensors" for place, name in enumerate(tensors)}
    homes |= {fault.name: Truncated.file for fault in faults if isinstance(fault, Truncated)}
    contents: dict[str, dict[str, Tensor]] = {}
    for name, file in homes.items():
        contents.setdefault(file, {})[name] = tensors[name]
    for fault in faults:
        if isinstance(fault, StoredTwice):
            neighbour = next(name for name in reversed(tensors) if homes[name] == "part-2.safetensors")
            moved = contents["part-2.safetensors"].pop(neighbour)
            homes[neighbour] = StoredTwice.file
            contents[StoredTwice.file] = {neighbour: moved, fault.name: tensors[fault.name]}
    folder.mkdir(parents=True)
    for file, held in contents.items():
        save_file(held, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": homes}))
    if Truncated.file in contents:
        path = folder / Truncated.file
        path.write_bytes(path.read_bytes()[:-4])
    return faults


def _choose(layout: Layout, kinds: Sequence[type[Fault]]) -> Iterator[Fault]:
    """A tensor for each kind, spread over the checkpoint."""
    copied = [name for names in layout.copies() for name in names]
    single = [name for name, place in layout.places.items() if name not in copied and len(place.shape) > 1]
    step = max(1, len(single) // len(kinds))
    for kind, name in zip((kind for kind in kinds if kind is not CopiesDiffer), single[::step], strict=False):
        yield kind(name, layout.places[name])
    if CopiesDiffer in kinds and copied:
        yield CopiesDiffer(copied[1], layout.places[copied[1]])
