"""Weight resolvers that are broken, each in one way, and networks that hold their weights wrongly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from diffulex_core.context import BuildContext
from diffulex_core.distributed import Seat
from diffulex_core.layers.decoder import Decoder
from diffulex_core.layers.linear import PackedLinear
from diffulex_core.testing.reference import model
from diffulex_core.weights import LoadContext, Part, Rename, ResolvedWeight, ShardId, WeightRules

ALL_HEADS = {"kv_heads": model.TINY["heads"]}
"""Queries, keys and values of one shape."""


class Resolver:
    """The kit's resolver, to be changed."""

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        resolved = model.WEIGHTS.resolve_checkpoint_weight(name, ctx)
        return self.strange(name) if resolved is None else self.change(name, resolved, ctx)

    def sources(self, target: str, shard_id: ShardId | None) -> Sequence[str]:
        return model.WEIGHTS.sources(target, shard_id)

    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight | None:
        return resolved

    def strange(self, name: str) -> ResolvedWeight | None:
        return None


class SwapsQueriesAndKeys(Resolver):
    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight:
        swapped = {"q": "k", "k": "q"}.get(str(resolved.shard_id), resolved.shard_id)
        return attrs.evolve(resolved, shard_id=swapped)


class SwapsLayers(Resolver):
    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight:
        own = next(own for own, parameter in ctx.parameters.items() if parameter is resolved.param)
        other = own.replace("layers.0", "layers.?").replace("layers.1", "layers.0").replace("layers.?", "layers.1")
        return attrs.evolve(resolved, param=ctx.parameters[other])


class SkipsANorm(Resolver):
    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight:
        return ResolvedWeight(skip="it looked superfluous") if name == "norm.weight" else resolved


class SendsTwoToOnePlace(Resolver):
    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight:
        return attrs.evolve(resolved, shard_id="gate") if resolved.shard_id == "up" else resolved


class SkipsWhateverIsStrange(Resolver):
    def strange(self, name: str) -> ResolvedWeight:
        return ResolvedWeight(skip="not needed")


class StumblesOverStrangeNames(Resolver):
    def strange(self, name: str) -> ResolvedWeight | None:
        raise KeyError(name)


class GoesByOrder(Resolver):
    """Believes that of a layer's keys and values the keys are asked for first."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight:
        if resolved.shard_id not in ("k", "v"):
            return resolved
        layer = name.replace(".k.", ".?.").replace(".v.", ".?.")
        calls = self.calls[layer] = self.calls.get(layer, 0) + 1
        return attrs.evolve(resolved, shard_id=("v", "k")[calls % 2])


class Loads(Resolver):
    """Copies the attention's last matrix itself."""

    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight:
        target = resolved.param
        assert target is not None
        if not name.endswith("out.weight"):
            return resolved
        return attrs.evolve(resolved, loader=lambda tensor: self.load(target, tensor))

    def load(self, target: Tensor, tensor: Tensor) -> None:
        raise NotImplementedError


class DropsTheLastRow(Loads):
    def load(self, target: Tensor, tensor: Tensor) -> None:
        target[:-1].copy_(tensor[:-1])


class TurnsSquares(Loads):
    def load(self, target: Tensor, tensor: Tensor) -> None:
        target.copy_(tensor.T if tensor.shape[0] == tensor.shape[1] else tensor)


class Broadcasts(Loads):
    def load(self, target: Tensor, tensor: Tensor) -> None:
        target.copy_(tensor[:1])


class KnowsStrangeNames:
    """Names that nobody could guess, and no word about them."""

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        inner = name.removeprefix("zz/").replace("/", ".")
        if not name.startswith("zz/"):
            return ResolvedWeight(skip="not ours")
        return model.WEIGHTS.resolve_checkpoint_weight(inner, ctx)


class HandWritten:
    """Splits names by hand, says nothing about them, and mistakes values for keys."""

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        swapped = name.replace(".k_proj.", ".?.").replace(".v_proj.", ".k.").replace(".?.", ".v.")
        return model.WEIGHTS.resolve_checkpoint_weight(swapped.replace("_proj.", ".").removeprefix("model."), ctx)


def relabelled(*, shards: Mapping[str, str]) -> WeightRules:
    """The kit's rules, in which some words of packed tensors mean other shards."""
    words = {"q": "q", "k": "k", "v": "v", "gate": "gate", "up": "up"} | dict(shards)
    packed = [
        Rename(f"layers.{{i}}.{word}.weight", f"layers.{{i}}.{target}.weight", shard=shard)
        for word, shard in words.items()
        for target in ("mlp.gate_up" if shard in ("gate", "up") else "attn.qkv",)
    ]
    others = [rule for rule in model.WEIGHTS.rules if isinstance(rule, Rename) and rule.shard is None]
    return WeightRules(*others, *packed)


class LayersSwapped:
    """Consistently takes each of the two layers for the other."""

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        return model.WEIGHTS.resolve_checkpoint_weight(self._other(name), ctx)

    def sources(self, target: str, shard_id: ShardId | None) -> Sequence[str]:
        return [self._other(name) for name in model.WEIGHTS.sources(target, shard_id)]

    def _other(self, name: str) -> str:
        return name.replace("layers.0", "layers.?").replace("layers.1", "layers.0").replace("layers.?", "layers.1")


class LeavesValuesOut(Decoder):
    """Its packed projections say that they consist of queries and keys."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for layer in self.layers:
            qkv = layer.attn.qkv
            qkv.parts = _without_values(qkv.parts)


def _without_values(parts: Callable[[str], Mapping[ShardId | None, Part]]) -> Any:
    def fewer(parameter: str) -> Mapping[ShardId | None, Part]:
        whole = parts(parameter)
        rows = sum(whole[shard].view.shape[0] for shard in ("q", "k"))
        return {None: Part.whole(whole[None].view[:rows]), "q": whole["q"], "k": whole["k"]}

    return fewer


class SplitsInAnotherOrder(Decoder):
    """Stores values where keys stand, and keys where values do."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for layer in self.layers:
            layer.attn.qkv.register_forward_hook(_mixed)


def _mixed(qkv: PackedLinear, _arguments: object, packed: Tensor) -> Tensor:
    query, key, value = qkv.split(packed)
    return torch.cat((query, value, key), dim=-1)


class SkipsTheHead(Resolver):
    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight:
        return ResolvedWeight(skip="tied to the embedding") if name == "head.weight" else resolved


class FillsHalfATie(Resolver):
    """Takes the head for a share of the embedding that it is tied to."""

    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight:
        target = ctx.parameters["embed.weight"]

        def half(tensor: Tensor) -> None:
            target[: len(tensor) // 2].copy_(tensor[: len(tensor) // 2])

        return ResolvedWeight(param=target, loader=half) if name == "head.weight" else resolved


def everyone_is_first(config: Mapping[str, Any], ctx: BuildContext) -> Any:
    """Every process's share as if it were the first's."""
    return model.build(config, attrs.evolve(ctx, tp=Seat(0, ctx.tp.size)))


def backwards(config: Mapping[str, Any], ctx: BuildContext) -> Any:
    """The shares in the wrong order."""
    return model.build(config, attrs.evolve(ctx, tp=Seat(ctx.tp.size - 1 - ctx.tp.rank, ctx.tp.size)))


class DropsAShard(Decoder):
    """The last process holds nothing of the MLP's last matrix: it takes the first one's part again."""

    def __init__(self, spec: Any, ctx: BuildContext) -> None:
        super().__init__(spec, ctx)
        for layer in self.layers:
            down = layer.mlp.down
            if ctx.tp.rank:
                down.held = attrs.evolve(down.held, start=0)
