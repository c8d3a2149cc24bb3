"""The checkpoints that a family's network can be loaded from: tensor names and shapes, as its resolver names them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from diffulex_core.weights import NamesSources, ResolvedWeight
from diffulex_core.weights.ledger import Ledger, Target
from diffulex_core.weights.resolve import Resolution
from diffulex_core.weights.types import ShardId
from tests.families.subjects import Subject

Shape = tuple[int, ...]
INDEX = "model.safetensors.index.json"


@attrs.frozen(kw_only=True, eq=False)
class Place:
    """What one checkpoint tensor fills.

    Attributes:
        names: the parameter's names in the network.
        shard: the part of it.
        shape: of the tensor as it is stored.
        transformed: the resolver changes it on the way.
    """

    names: tuple[str, ...]
    shard: ShardId | None
    shape: Shape
    transformed: bool


@attrs.frozen(kw_only=True, eq=False)
class Layout:
    """One way to store a network.

    Attributes:
        name: what is special about it.
        places: by checkpoint name; several names may have one place, if they are copies of one tensor.
    """

    name: str
    places: Mapping[str, Place]

    def copies(self) -> list[list[str]]:
        """Names of tensors that must be equal."""
        groups: dict[tuple[tuple[str, ...], ShardId | None], list[str]] = {}
        for name, place in self.places.items():
            groups.setdefault((place.names, place.shard), []).append(name)
        return [names for names in groups.values() if len(names) > 1]

    def __str__(self) -> str:
        return self.name


def layouts(subject: Subject) -> Iterator[Layout]:
    """Every part stored apart, in fewer and larger pieces, under other names, and with all copies that are allowed."""
    network = subject.network()
    resolution = Resolution.of(network, subject.resolver, subject.config, torch.float32)
    targets = list(Ledger.of(network).targets.values())
    seen: list[Mapping[str, Place]] = []
    for name, level, among in (
        ("apart", 0, _first),
        ("stacked", 1, _first),
        ("stacked more", 2, _first),
        ("other names", 0, _last),
        ("copies", 0, _copies),
    ):
        places = _places(subject, resolution, targets, level, among)
        if not any(set(places) == set(known) for known in seen):
            seen.append(places)
            yield Layout(name=name, places=places)


Named = list[tuple[str, ResolvedWeight]]


def _first(named: Named, target: Target) -> Named:
    return named[:1]


def _last(named: Named, target: Target) -> Named:
    return named[-1:]


def _copies(named: Named, target: Target) -> Named:
    """All names of a tied or copied tensor, one of others."""
    copied = len(target.names) > 1 or all(resolved.copied for _, resolved in named)
    return named if copied else named[:1]


def _places(
    subject: Subject,
    resolution: Resolution,
    targets: Sequence[Target],
    level: int,
    among: Callable[[Named, Target], Named],
) -> Mapping[str, Place]:
    """Where everything is stored: in the smallest pieces (level 0) or larger ones, under some of their names."""
    found: dict[str, Place] = {}
    for target in targets:
        covered: set[ShardId | None] = set()
        sources = {shard: names for shard in target.parts if (names := _sources(subject, target, shard))}
        sizes = sorted({len(target.leaves(shard)) for shard in sources})
        largest = sizes[min(level, len(sizes) - 1)] if sizes else 0
        for shard in sorted(sources, key=lambda shard: len(target.leaves(shard)), reverse=True):
            leaves = target.leaves(shard)
            if len(leaves) > largest or covered.intersection(leaves):
                continue
            covered.update(leaves)
            named = []
            for name in sources[shard]:
                resolved = resolution(name)
                assert resolved is not None, f"{name} is named as a source of {target.names}, but has no place"
                named.append((name, resolved))
            for name, resolved in among(named, target):
                shape = _stored_shape(target.parts[shard].shape, resolved)
                changed = resolved.transform is not None
                found[name] = Place(names=target.names, shard=shard, shape=shape, transformed=changed)
        missing = set(target.leaves(None)) - covered
        assert not missing, f"no checkpoint tensor is named for {target.names}, parts {missing}"
    return found


def _sources(subject: Subject, target: Target, shard: ShardId | None) -> list[str]:
    assert isinstance(subject.resolver, NamesSources), f"the resolver of {subject} names no sources"
    named = [source for name in target.names for source in subject.resolver.sources(name, shard)]
    return list(dict.fromkeys(named))


def _stored_shape(shape: Shape, resolved: ResolvedWeight) -> Shape:
    """The shape from which a transform makes the part's; a family's transforms turn tensors."""
    if resolved.transform is None:
        return shape
    for turned in permutations(shape):
        if resolved.transform(torch.empty(turned, device="meta")).shape == shape:
            return turned
    raise AssertionError(f"no turned {shape} is transformed into {shape}")


def distinct(layout: Layout) -> dict[str, Tensor]:
    """Whole numbers from 1 on, none twice but in copies."""
    made: dict[str, Tensor] = {}
    start = 1
    for name, place in layout.places.items():
        count = torch.Size(place.shape).numel()
        made[name] = torch.arange(start, start + count, dtype=torch.float32).view(place.shape)
        start += count
    assert start < 2**24, "these are more numbers than fp32 can tell apart; use a smaller config.json"
    for names in layout.copies():
        for name in names[1:]:
            made[name] = made[names[0]].clone()
    return made


def write(
    folder: Path, tensors: Mapping[str, Tensor], *, files: int = 1, seed: int | None = None, prefix: str = "model"
) -> Mapping[str, str]:
    """Write tensors over some files with an index; a seed shuffles the tensors among and within them.

    Returns:
        The file of each tensor.
    """
    names = list(tensors)
    if seed is not None:
        random.Random(seed).shuffle(names)
    weight_map = {name: f"{prefix}-{place % files}.safetensors" for place, name in enumerate(names)}
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(set(weight_map.values())):
        _save_in_order({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def _save_in_order(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file of fp32 tensors in the order given; the library sorts them by name."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        stored = tensor.contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [len(data), len(data) + len(stored)]}
        data += stored
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def parts_of(network: nn.Module, *, smallest: bool = False) -> dict[tuple[tuple[str, ...], ShardId | None], Tensor]:
    """What a process holds of each checkpoint tensor, by the parameter's names and the part."""
    return {
        (target.names, shard): target.parts[shard].view
        for target in Ledger.of(network).targets.values()
        for shard in (target.leaves(None) if smallest else target.parts)
    }
