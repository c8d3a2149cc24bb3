"""The checkpoints that a family's network can be loaded from: tensor names and shapes, as its resolver knows them.

No name is known beforehand: a resolver that offers `sources` is asked for them, any other is asked where the usual
names lead. What it does not know is looked for among the network's own names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from diffulex_core.protocols import WeightResolver
from diffulex_core.testing.check import CheckFailed
from diffulex_core.testing.forward import META
from diffulex_core.testing.subjects import FamilySubject
from diffulex_core.testing.usual_names import usual_names
from diffulex_core.weights import NamesSources, Part, ResolvedWeight, ShardId
from diffulex_core.weights.ledger import Ledger, Target
from diffulex_core.weights.loader import as_module
from diffulex_core.weights.resolve import Resolution


class UnknownNamesError(CheckFailed):
    """Nobody says which checkpoint tensors fill a network."""


@attrs.frozen(kw_only=True, eq=False)
class Place:
    """What one checkpoint tensor fills.

    Attributes:
        names: the parameter's names in the network.
        shard: the part of it.
        shape, dtype: of the tensor as it is stored.
        transformed: the resolver changes it on the way, or loads it itself.
    """

    names: tuple[str, ...]
    shard: ShardId | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    transformed: bool

    @property
    def told(self) -> str:
        """How messages call it."""
        return self.names[0] if self.shard is None else f"{self.names[0]} (part {self.shard!r})"


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


Named = list[tuple[str, ResolvedWeight]]


def layouts(subject: FamilySubject) -> Iterator[Layout]:
    """Every way to store a family's network. See `layouts_of`."""
    yield from layouts_of(as_module(subject.build(device=META)), subject.resolver, subject.config)


def layouts_of(network: nn.Module, resolver: WeightResolver, config: Mapping[str, Any]) -> Iterator[Layout]:
    """Every part stored apart, in fewer and larger pieces, under other names, and with all copies that are allowed.

    Args:
        network: of the whole family, in one process.
        resolver: the family's.
        config: its config.json.
    Raises:
        UnknownNamesError: the resolver does not say which names it expects, and they are none of the usual ones.
        CheckFailed: a part has no name, or a name leads nowhere.
    """
    known = _Known.of(network, resolver, config)
    seen: list[set[str]] = []
    for name, level, among in (
        ("apart", 0, _first),
        ("stacked", 1, _first),
        ("stacked more", 2, _first),
        ("other names", 0, _last),
        ("copies", 0, _copies),
    ):
        places = _places(known, level, among)
        if set(places) not in seen:
            seen.append(set(places))
            yield Layout(name=name, places=places)


def plain_layout(subject: FamilySubject) -> Layout:
    """Every part stored apart, under its first name. Raises as `layouts` does."""
    return next(iter(layouts(subject)))


def unknown_names(subject: FamilySubject) -> str | None:
    """Why no checkpoint of a family can be made up, or None where one can, or where the family is broken."""
    try:
        plain_layout(subject)
    except UnknownNamesError as error:
        return str(error)
    except Exception:  # noqa: BLE001 - code under test may raise anything; the checks themselves will show it
        return None
    return None


def parts_of(network: nn.Module, *, smallest: bool = False) -> dict[tuple[tuple[str, ...], ShardId | None], Part]:
    """What a process holds of each checkpoint tensor, by the parameter's names and the part."""
    return {
        (target.names, shard): target.parts[shard]
        for target in Ledger.of(network).targets.values()
        for shard in (target.leaves(None) if smallest else target.parts)
    }


@attrs.frozen(kw_only=True, eq=False)
class _Known:
    """Which checkpoint names lead to which part of a network."""

    targets: Sequence[Target]
    resolution: Resolution
    sources: dict[tuple[int, ShardId | None], list[str]]
    declared: bool

    @classmethod
    def of(cls, network: nn.Module, resolver: WeightResolver, config: Mapping[str, Any]) -> _Known:
        resolution = Resolution.of(network, resolver, config, torch.float32)
        targets = list(Ledger.of(network).targets.values())
        sources: dict[tuple[int, ShardId | None], list[str]] = {}
        declared = isinstance(resolver, NamesSources)
        if isinstance(resolver, NamesSources):
            for target in targets:
                for shard in target.parts:
                    for name in (source for own in target.names for source in resolver.sources(own, shard)):
                        sources.setdefault((id(target.tensor), shard), []).append(name)
        known = cls(targets=targets, resolution=resolution, sources=sources, declared=declared)
        if not declared:
            known.look_for(usual_names(config, known.leads))
        known.look_for(network.state_dict())
        return known

    def look_for(self, names: Iterable[str]) -> None:
        """Note where these names lead, while there are parts without a name."""
        if not any(self.gaps(target) for target in self.targets):
            return
        for name in names:
            resolved = self.ask(name)
            if resolved is not None and resolved.target is not None:
                self.sources.setdefault((id(resolved.target), resolved.shard_id), []).append(name)

    def leads(self, name: str) -> bool:
        """Whether a name leads to a part of the network."""
        resolved = self.ask(name)
        return resolved is not None and resolved.target is not None

    def ask(self, name: str) -> ResolvedWeight | None:
        """Where a guessed name leads. A resolver that stumbles over a name that no checkpoint has does not know it."""
        try:
            return self.resolution(name)
        except Exception:  # noqa: BLE001 - of a resolver's stumbling the check of strange tensors tells
            return None

    def names(self, target: Target, shard: ShardId | None) -> list[str]:
        """The names of a part."""
        return list(dict.fromkeys(self.sources.get((id(target.tensor), shard), ())))

    def gaps(self, target: Target) -> list[ShardId | None]:
        """The smallest parts that no name is known for."""
        covered = {leaf for shard in target.parts if self.names(target, shard) for leaf in target.leaves(shard)}
        return [leaf for leaf in target.leaves(None) if leaf not in covered]


def _first(named: Named, target: Target) -> Named:
    return named[:1]


def _last(named: Named, target: Target) -> Named:
    return named[-1:]


def _copies(named: Named, target: Target) -> Named:
    """All names of a tied or copied tensor, one of others."""
    copied = len(target.names) > 1 or all(resolved.copied for _, resolved in named)
    return named if copied else named[:1]


def _places(known: _Known, level: int, among: Callable[[Named, Target], Named]) -> Mapping[str, Place]:
    """Where everything is stored: in the smallest pieces (level 0) or larger ones, under some of their names."""
    found: dict[str, Place] = {}
    for target in known.targets:
        _require_names(known, target)
        sources = {shard: names for shard in target.parts if (names := known.names(target, shard))}
        for shard in _pieces(target, sources, level):
            named = list(_resolved(known.resolution, sources[shard], target, shard))
            for name, resolved in among(named, target):
                found[name] = Place(
                    names=target.names,
                    shard=shard,
                    shape=_stored_shape(name, target.parts[shard].shape, resolved),
                    dtype=torch.float32 if target.tensor.is_floating_point() else target.tensor.dtype,
                    transformed=resolved.transform is not None or resolved.loader is not None,
                )
    return found


def _pieces(target: Target, sources: Iterable[ShardId | None], level: int) -> Iterator[ShardId | None]:
    """Parts with names that fill a target together: the smallest ones (level 0) or larger ones, as far as there are."""

    def size(shard: ShardId | None) -> int:
        return len(target.leaves(shard))

    by_size = sorted(sources, key=size)
    sizes = sorted({size(shard) for shard in by_size})
    largest = sizes[min(level, len(sizes) - 1)]
    small = [shard for shard in by_size if size(shard) <= largest]
    covered: set[ShardId | None] = set()
    for shard in (*sorted(small, key=size, reverse=True), *(shard for shard in by_size if shard not in small)):
        if not covered.intersection(target.leaves(shard)):
            covered.update(target.leaves(shard))
            yield shard


def _require_names(known: _Known, target: Target) -> None:
    missing = known.gaps(target)
    if not missing:
        return
    what = target.names[0] if missing == [None] else f"{target.names[0]}, parts {missing}"
    if known.declared:
        raise CheckFailed(f"no checkpoint tensor leads to {what}: loading would refuse every checkpoint.")
    raise UnknownNamesError(
        f"the weight resolver does not say which checkpoint tensor fills {what}; give it"
        " `sources(target, shard_id)` (diffulex_core.weights.NamesSources), or use WeightRules, which has it"
    )


def _resolved(
    resolution: Resolution, names: Sequence[str], target: Target, shard: ShardId | None
) -> Iterator[tuple[str, ResolvedWeight]]:
    for name in names:
        resolved = resolution(name)
        if resolved is None or resolved.skip is not None:
            raise CheckFailed(f"{name!r} is named as what fills {target.label(shard)}, but it has no place there.")
        yield name, resolved


def _stored_shape(name: str, shape: tuple[int, ...], resolved: ResolvedWeight) -> tuple[int, ...]:
    """The shape from which a transform makes the part's; transforms turn tensors, or leave their shapes alone."""
    if resolved.transform is None:
        return shape
    for turned in dict.fromkeys((shape, *permutations(shape))):
        try:
            made: Tensor = resolved.transform(torch.empty(turned, device="meta"))
        except (RuntimeError, ValueError, IndexError):
            continue
        if made.shape == shape:
            return turned
    raise UnknownNamesError(f"{name!r} is transformed into shape {list(shape)}, and from which shape is not known")


def filled(layout: Layout, make: Callable[[str, Place, int], Tensor]) -> dict[str, Tensor]:
    """Tensors of a layout, made of name, place and the number of elements before them; copies are equal."""
    made: dict[str, Tensor] = {}
    start = 0
    for name, place in layout.places.items():
        made[name] = make(name, place, start).to(place.dtype)
        start += torch.Size(place.shape).numel()
    for names in layout.copies():
        for name in names[1:]:
            made[name] = made[names[0]].clone()
    return made


def distinct(layout: Layout) -> dict[str, Tensor]:
    """Whole numbers from 1 on, none twice but in copies."""

    def count(name: str, place: Place, start: int) -> Tensor:
        size = torch.Size(place.shape).numel()
        if start + size >= 2**24:
            raise CheckFailed("the tiny config.json has more numbers than fp32 can tell apart (16 million).")
        return torch.arange(start + 1, start + size + 1, dtype=torch.float64).view(place.shape)

    return filled(layout, count)


def drawn(layout: Layout) -> dict[str, Tensor]:
    """Random tensors: matrices that keep the scale, everything else near 1 or near 0, none an identity."""
    generator = torch.Generator().manual_seed(5)

    def draw(name: str, place: Place, start: int) -> Tensor:
        numbers: Tensor = torch.randn(place.shape, generator=generator)
        if not place.dtype.is_floating_point:
            return torch.zeros(place.shape)
        if len(place.shape) > 1:
            return numbers / math.sqrt(place.shape[-1])
        return numbers * 0.2 + float(not name.endswith("bias"))

    return filled(layout, draw)
