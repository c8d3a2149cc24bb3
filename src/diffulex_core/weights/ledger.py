"""The books of a load: what the model needs written, who claims it, and everything that does not add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

import attrs
import torch
from torch import Tensor, nn

from diffulex_core.errors import PluginError
from diffulex_core.weights.files import StoredTensor
from diffulex_core.weights.types import ExplainsStrays, NamesSources, Part, PartedModule, ResolvedWeight, ShardId

DTYPES: Mapping[str, torch.dtype] = MappingProxyType({
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
})  # fmt: skip
"""The dtypes of safetensors files."""


@attrs.frozen(kw_only=True, eq=False)
class Target:
    """A parameter or persistent buffer that the checkpoint must fill.

    Attributes:
        names: its names in the model; several when it is tied.
        tensor: the storage.
        parts: what fills it; under None the checkpoint tensor that fills it whole.
    """

    names: tuple[str, ...]
    tensor: Tensor
    parts: Mapping[ShardId | None, Part]

    @property
    def shards(self) -> tuple[ShardId, ...]:
        """The named parts; empty when it is loaded whole."""
        return tuple(shard for shard in self.parts if shard is not None)

    def leaves(self, shard: ShardId | None) -> tuple[ShardId | None, ...]:
        """The smallest parts that are filled together with this one; parts overlap where they share some."""
        if shard is not None:
            return self.parts[shard].covers or (shard,)
        return tuple(name for name in self.shards if not self.parts[name].covers) or (None,)

    def label(self, shard: ShardId | None) -> str:
        """How messages call the part."""
        name = " = ".join(map(repr, self.names))
        return name if shard is None else f"{name} (part {shard!r})"


@attrs.frozen(kw_only=True, eq=False)
class Claim:
    """One checkpoint tensor and where it goes."""

    stored: StoredTensor
    resolved: ResolvedWeight
    target: Target

    @property
    def part(self) -> Part:
        """What the tensor fills."""
        return self.target.parts[self.resolved.shard_id]

    @property
    def label(self) -> str:
        """How messages call what it fills."""
        return self.target.label(self.resolved.shard_id)

    @property
    def readable(self) -> bool:
        """Whether its file is sound and it fits, so that its numbers may be looked at."""
        return self.misfit == "" and self.stored.shape is not None

    @cached_property
    def misfit(self) -> str:
        """Why the tensor cannot fill its place, in a sentence; empty when it can, or when its file cannot be read."""
        stored, resolved, view = self.stored, self.resolved, self.part.view
        if stored.shape is None or stored.dtype is None or resolved.loader is not None:
            return ""
        dtype = DTYPES.get(stored.dtype)
        if dtype is None:
            return f"{stored.where} holds {stored.dtype}, which cannot be read."
        sample = torch.empty(stored.shape, dtype=dtype, device="meta")
        if resolved.transform is not None:
            try:
                sample = resolved.transform(sample)
            except (RuntimeError, ValueError, IndexError) as error:
                return f"{stored.where} has shape {list(stored.shape)}, of which {self.label} cannot be made: {error}."
        if sample.is_floating_point() != view.is_floating_point():
            kind = "floating-point" if view.is_floating_point() else "whole"
            return f"{stored.where} holds {stored.dtype}, but {self.label} takes {kind} numbers."
        if sample.shape != self.part.shape:
            changed = "" if sample.shape == stored.shape else f" (stored as {list(stored.shape)})"
            return (
                f"{stored.where} has shape {list(sample.shape)}{changed}, but {self.label} has {list(self.part.shape)}."
            )
        return ""


@attrs.define(eq=False)
class Ledger:
    """Collects claims and problems.

    Attributes:
        targets: by identity of the tensor.
        claims: in the order of the checkpoint.
        ties: pairs of claims on one tied part; their contents must be equal.
        skipped: checkpoint tensors that are left out, with reasons.
        problems: what does not add up, one sentence each.
    """

    targets: Mapping[int, Target]
    claims: list[Claim] = attrs.field(factory=list, init=False)
    ties: list[tuple[Claim, Claim]] = attrs.field(factory=list, init=False)
    skipped: dict[str, str] = attrs.field(factory=dict, init=False)
    problems: list[str] = attrs.field(factory=list, init=False)
    _filled: dict[tuple[int, ShardId | None], list[Claim]] = attrs.field(factory=dict, init=False)

    @classmethod
    def of(cls, model: nn.Module) -> Ledger:
        """Books for all parameters and persistent buffers of a model."""
        names: dict[int, list[str]] = {}
        tensors: dict[int, Tensor] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            names.setdefault(id(tensor), []).append(name)
            tensors[id(tensor)] = tensor
        return cls({
            key: Target(names=tuple(names[key]), tensor=tensor, parts=_parts(model, names[key][0], tensor))
            for key, tensor in tensors.items()
        })  # fmt: skip

    def enter(self, stored: StoredTensor, resolved: ResolvedWeight | None, resolver: object = None) -> None:
        """Book one checkpoint tensor. `resolver` may know what a tensor without a place means (`ExplainsStrays`).

        Raises:
            PluginError: the resolver named a tensor or a part that the model does not have.
        """
        if resolved is None:
            shape = "" if stored.shape is None else f" {list(stored.shape)}"
            meaning = resolver.explain(stored.name) if isinstance(resolver, ExplainsStrays) else ""
            text = f"{stored.name!r}{shape} in {stored.file} has no place in this model"
            self.problems.append(f"{text}: {meaning}." if meaning else f"{text}.")
            return
        if resolved.skip is not None:
            self.skipped[stored.name] = resolved.skip
            return
        target = self.targets.get(id(resolved.target))
        if target is None:
            raise PluginError(f"The weight resolver sends {stored.name!r} to a tensor that is not part of the model.")
        shard = resolved.shard_id
        if shard not in target.parts and any(map(_is_numbered, target.shards)) and _is_numbered(shard):
            # The checkpoint may have more experts than the model.
            self.problems.append(
                f"{stored.where} has no place in this model: {target.names[0]!r} has no part {shard!r}."
            )
            return
        if shard not in target.parts:
            parts = ", ".join(map(repr, target.shards)) or "none"
            raise PluginError(
                f"The weight resolver sends {stored.name!r} to part {shard!r} of {target.names[0]!r},"
                f" which has: {parts}."
            )
        claim = Claim(stored=stored, resolved=resolved, target=target)
        if claim.misfit:
            self.problems.append(claim.misfit)
        self._check_alone(claim)

    @property
    def model_bytes(self) -> int:
        """Size of the model's parameters and buffers."""
        return sum(target.tensor.nbytes for target in self.targets.values())

    def close(self, resolver: object) -> None:
        """Find what nobody claims. `resolver` may know what to look for (`NamesSources`)."""
        for key, target in self.targets.items():
            empty = [leaf for leaf in target.leaves(None) if (key, leaf) not in self._filled]
            self.problems += [_missing(target, shard, resolver) for shard in _gaps(target, empty, resolver)]

    def _check_alone(self, claim: Claim) -> None:
        key, shard = id(claim.target.tensor), claim.resolved.shard_id
        leaves = claim.target.leaves(shard)
        rivals = list(dict.fromkeys(rival for leaf in leaves for rival in self._filled.get((key, leaf), ())))
        for leaf in leaves:
            self._filled.setdefault((key, leaf), []).append(claim)
        if not rivals:
            self.claims.append(claim)
        elif rivals[0].resolved.shard_id == shard and _may_repeat(claim, rivals):
            self.ties.append((rivals[0], claim))
        else:
            self.problems.append(f"{rivals[0].stored.where} and {claim.stored.where} both fill {claim.label}.")


def _may_repeat(claim: Claim, rivals: Sequence[Claim]) -> bool:
    """Whether a checkpoint may hold the part once more: under each name of a tied tensor, or under a copy's."""
    copied = all(one.resolved.copied for one in (claim, *rivals))
    return copied or len(claim.target.names) > len(rivals)


def _parts(model: nn.Module, name: str, tensor: Tensor) -> Mapping[ShardId | None, Part]:
    path, _, parameter = name.rpartition(".")
    owner = model.get_submodule(path)
    return owner.parts(parameter) if isinstance(owner, PartedModule) else {None: Part.whole(tensor)}


def _is_numbered(shard: ShardId | None) -> bool:
    return str(shard)[:1].isdigit()


def _gaps(target: Target, empty: Sequence[ShardId | None], resolver: object) -> list[ShardId | None]:
    """The parts to report for these leaves: a stacked part in place of many, where a checkpoint may have one."""
    rest = set(empty)
    gaps: list[ShardId | None] = []
    for shard in target.parts:
        leaves = target.leaves(shard)
        if len(leaves) > 1 and rest.issuperset(leaves) and _sources(target, shard, resolver):
            gaps.append(shard)
            rest.difference_update(leaves)
    return gaps + [leaf for leaf in empty if leaf in rest]


def _missing(target: Target, shard: ShardId | None, resolver: object) -> str:
    sources = _sources(target, shard, resolver)
    leaves = target.leaves(shard)
    if len(leaves) > 1:
        sources += _sources(target, leaves[0], resolver)
    expected = f": the checkpoint has no {' or '.join(map(repr, sources))}" if sources else ""
    return f"Nothing fills {target.label(shard)} {list(target.parts[shard].shape)}{expected}."


def _sources(target: Target, shard: ShardId | None, resolver: object) -> list[str]:
    """Checkpoint names that would fill a part, as far as the resolver can say."""
    if not isinstance(resolver, NamesSources):
        return []
    return [source for name in target.names for source in resolver.sources(name, shard)]
