"""Broken subjects for the checks of `diffulex_core.testing.checks.families` and the file that it takes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from diffulex_core.context import BuildContext, ForwardContext
from diffulex_core.distributed import ALONE
from diffulex_core.errors import ConfigError
from diffulex_core.layers.decoder import Decoder
from diffulex_core.layers.spec import DecoderSpec
from diffulex_core.plugin import Capability
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import families, soft_rows
from diffulex_core.testing.reference import model
from diffulex_core.types import KVGeometry
from tests.conformance.broken_families import BrokenFamily, Build, decoder, family
from tests.conformance.mutant import Mutant
from tests.conformance.unusual_networks import Conditioned

CHECK = "tests.conformance:check_config"


class TellsAnotherSize(Decoder):
    @property
    def vocab_size(self) -> int:
        return 140


class Misdeclared(Decoder):
    """Says of its heads what is not so."""

    @property
    def kv_geometry(self) -> tuple[KVGeometry, ...]:
        return tuple(self.declared(super().kv_geometry))

    def declared(self, true: Sequence[KVGeometry]) -> Sequence[KVGeometry]:
        raise NotImplementedError


class DeclaresALayerMore(Misdeclared):
    def declared(self, true: Sequence[KVGeometry]) -> Sequence[KVGeometry]:
        return (*true, true[0])


class DeclaresMoreQueries(Misdeclared):
    def declared(self, true: Sequence[KVGeometry]) -> Sequence[KVGeometry]:
        return [attrs.evolve(each, num_heads=2 * each.num_heads) for each in true]


class DeclaresMoreKeys(Misdeclared):
    """Its one key/value head is spread over two by whoever stores it."""

    def declared(self, true: Sequence[KVGeometry]) -> Sequence[KVGeometry]:
        return [attrs.evolve(each, num_kv_heads=2) for each in true]


class DeclaresWiderHeads(Misdeclared):
    def declared(self, true: Sequence[KVGeometry]) -> Sequence[KVGeometry]:
        return [attrs.evolve(each, head_dim=each.head_dim + 2) for each in true]


class StoresAllInOneLayer(Decoder):
    def __init__(self, spec: DecoderSpec, ctx: BuildContext) -> None:
        super().__init__(spec, ctx)
        for layer in self.layers:
            layer.attn.layer = 0


class HeadWithoutRows(Decoder):
    """Scales logits by the largest one of all rows."""

    def logits(self, hidden: Tensor) -> Tensor:
        logits = super().logits(hidden)
        return logits / logits.abs().max().clamp(min=1)


class MakesARow(Decoder):
    """Of no rows it makes one."""

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden if len(hidden) else hidden.new_zeros(1, hidden.shape[1]))


class NoNetwork:
    """Is no torch.nn.Module."""


def undivided(config: Mapping[str, Any], ctx: BuildContext) -> Any:
    """The whole network for every process."""
    return model.build(config, attrs.evolve(ctx, tp=ALONE))


def refuses_some(config: Mapping[str, Any], ctx: BuildContext) -> Any:
    """Refuses all processes but the first."""
    if ctx.tp.rank:
        raise ConfigError(["only one process is supported."])
    return model.build(config, ctx)


def dies(config: Mapping[str, Any], ctx: BuildContext) -> Any:
    """Raises the wrong error."""
    if ctx.tp.size > 1:
        raise RuntimeError("shape '[32]' is invalid for input of size 31")
    return model.build(config, ctx)


def sharing() -> Build:
    """Every network has one and the same norm."""
    kept = dict[str, nn.Parameter]()

    def build(config: Mapping[str, Any], ctx: BuildContext) -> Any:
        network = model.build(config, ctx)
        assert isinstance(network, Decoder)
        if not network.final_norm.weight.is_meta:
            network.final_norm.weight = kept.setdefault("norm", network.final_norm.weight)
        return network

    return build


def draws_numbers(config: Mapping[str, Any], ctx: BuildContext) -> Any:
    """Fills itself with random numbers of the process's generator."""
    network = model.build(config, ctx)
    assert isinstance(network, Decoder)
    torch.nn.init.normal_(network.embed.weight)
    torch.rand(3)
    return network


def sets_the_default(config: Mapping[str, Any], ctx: BuildContext) -> Any:
    """Sets torch's default dtype to the one that is asked for."""
    torch.set_grad_enabled(False)
    return model.build(config, ctx)


def on_the_host(config: Mapping[str, Any], ctx: BuildContext) -> Any:
    """Makes its parameters on the CPU, wherever they are wanted."""
    return model.build(config, attrs.evolve(ctx, device=torch.device("cpu")))


def writes_config(config: dict[str, Any], ctx: BuildContext) -> Any:
    """Notes what it made of its config.json."""
    config["head_dim"] = 8
    return model.build(config, ctx)


def counting() -> Build:
    """Calls its parameters differently each time."""
    built = list[int]()

    def build(config: Mapping[str, Any], ctx: BuildContext) -> Any:
        network = model.build(config, ctx)
        assert isinstance(network, Decoder)
        network.register_parameter(f"scale_{len(built)}", nn.Parameter(torch.empty(1, device=ctx.device), False))
        built.append(1)
        return network

    return build


def always_wide(config: Mapping[str, Any], ctx: BuildContext) -> Any:
    """Makes fp32 parameters, whatever is asked for."""
    return model.build(config, attrs.evolve(ctx, dtype=torch.float32))


class WideRows(Decoder):
    """Gives fp32 rows, whatever its parameters are."""

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return super().forward(input_ids, positions, ctx).float()

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden.to(self.embed.weight.dtype))


class IgnoresWeights(Decoder):
    def blend(self, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        return super().blend(ids, torch.full_like(weights, 1 / weights.shape[1]), match_norm)


class IgnoresNorms(Decoder):
    def blend(self, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        return super().blend(ids, weights, torch.zeros_like(match_norm))


class MatchesAllNorms(Decoder):
    """Rows are scaled as soon as one of them wants it."""

    def blend(self, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        return super().blend(ids, weights, match_norm.any().expand(len(match_norm)))


class MakesWeightsSumToOne(Decoder):
    def blend(self, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        return super().blend(ids, weights / weights.sum(1, keepdim=True), match_norm)


class IgnoresBlends(Decoder):
    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return super().forward(input_ids, positions, attrs.evolve(ctx, soft=None))


class FeedsTheFirstRows(Decoder):
    """Takes it that the first rows are the ones that are fed embeddings."""

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        soft = ctx.soft if ctx.soft is None else attrs.evolve(ctx.soft, rows=torch.arange(len(ctx.soft.rows)))
        return super().forward(input_ids, positions, attrs.evolve(ctx, soft=soft))


class CannotBlend(Decoder):
    blend = None  # type: ignore[assignment]


class IgnoresBeliefs(Conditioned):
    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        return super().forward(input_ids, positions, attrs.evolve(ctx, soft=None))


class TakesTheBest(Conditioned):
    """The embedding of the most probable token."""

    def soft_embeddings(self, logits: Tensor) -> Tensor:
        return self.embed(logits.argmax(-1))


class LeavesZerosIn(Conditioned):
    """Whoever believes nothing is told apart from whoever is told nothing."""

    def forward(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        soft = None if ctx.soft is None else attrs.evolve(ctx.soft, embeddings=ctx.soft.embeddings + 0.1)
        return super().forward(input_ids, positions, attrs.evolve(ctx, soft=soft))


def _built(build: Build, **changes: Any) -> Callable[[], BrokenFamily]:
    return lambda: family(build=build, **changes)


def _blending(kind: type[Decoder]) -> Callable[[], BrokenFamily]:
    return _built(decoder(kind), provides={Capability.SOFT_INPUTS})


def _conditioned(kind: type[Decoder]) -> Callable[[], BrokenFamily]:
    return _built(decoder(kind), provides={Capability.SELF_CONDITIONING})


def checked(check: Callable[[dict[str, Any]], Any], build: Build | None = None) -> BrokenFamily:
    """The kit's family with a check of config.json, built strictly unless it is built otherwise."""
    return family(build=build or strict_build, check_config=CHECK, parts={CHECK: check})


def _checking(check: Callable[[dict[str, Any]], Any], build: Build | None = None) -> Callable[[], BrokenFamily]:
    return lambda: checked(check, build)


def sound_check(config: Mapping[str, Any]) -> list[str]:
    """Problems of the kit's config.json."""
    wanted = [key for key, value in model.TINY.items() if type(value) is int and not key.endswith("_id")]
    return [
        f"{key} is {config.get(key)!r}; it must be a whole number of at least 1."
        for key in wanted
        if type(config.get(key)) is not int or config[key] < 1
    ]


def strict_build(config: Mapping[str, Any], ctx: BuildContext) -> Any:
    """The kit's network, of a config.json without problems."""
    if problems := sound_check(config):
        raise ConfigError(problems)
    return model.build(config, ctx)


def _looks_up(config: dict[str, Any]) -> list[str]:
    return [] if config["width"] > 0 else ["width must be positive."]


def _refuses_the_unknown(config: dict[str, Any]) -> list[str]:
    return [f"{key} is not known." for key in config if key not in model.TINY] + sound_check(config)


def _names_nothing(config: dict[str, Any]) -> list[str]:
    return ["this config.json is not supported."] if sound_check(config) else []


def _finds_too_much(config: dict[str, Any]) -> list[str]:
    return [] if config == {**model.TINY} else [f"{', '.join(config.keys() ^ model.TINY.keys()) or 'width'}: unusual."]


_TABLE: tuple[tuple[AnyCheck, dict[str, Callable[[], BrokenFamily]]], ...] = (
    (
        families.check_the_tiny_config_belongs_to_its_family,
        {
            "nobody claims its architecture": lambda: family(config={"architectures": ["Somebody"]}),
            "its own check finds a problem": _checking(lambda config: ["this is too small."]),
        },
    ),
    (
        families.check_special_tokens_are_in_the_vocabulary,
        {
            "the mask token is one too high": lambda: family(config={"mask_token_id": model.TINY["vocab_size"]}),
            "vocab_size is that of a padded vocabulary": _built(decoder(TellsAnotherSize)),
        },
    ),
    (
        families.check_config_problems_are_told,
        {
            "the check looks keys up": _checking(_looks_up),
            "the check finds nothing": _checking(lambda config: []),
            "unknown keys are refused": _checking(_refuses_the_unknown),
            "no key is named": _checking(_names_nothing),
            "the check refuses what build takes": _checking(_finds_too_much),
            "build lets tracebacks through": _checking(sound_check, model.build),
        },
    ),
    (
        families.check_networks_have_the_shape_that_they_declare,
        {
            "a layer too many is declared": _built(decoder(DeclaresALayerMore)),
            "more query heads are declared": _built(decoder(DeclaresMoreQueries)),
            "more key/value heads are declared": _built(decoder(DeclaresMoreKeys), config={"kv_heads": 1}),
            "wider heads are declared": _built(decoder(DeclaresWiderHeads)),
            "all layers store in the first one's pages": _built(decoder(StoresAllInOneLayer)),
            "the head raises when there are no rows": _built(decoder(HeadWithoutRows)),
            "the head makes a row of none": _built(decoder(MakesARow)),
            "build returns no network": _built(lambda config, ctx: NoNetwork()),
        },
    ),
    (
        families.check_impossible_divisions_are_refused,
        {
            "every process has all heads": _built(undivided),
            "some processes are refused": _built(refuses_some),
            "another error is raised": _built(dies),
        },
    ),
    (
        families.check_networks_are_built_afresh,
        {
            "two networks share a norm": lambda: family(build=sharing()),
            "random numbers are drawn": _built(draws_numbers),
            "gradients are switched off": _built(sets_the_default),
            "parameters are made on the host": _built(on_the_host),
            "config.json is written to": _built(writes_config),
            "parameters have other names each time": lambda: family(build=counting()),
        },
    ),
    (
        families.check_dtypes_are_heeded,
        {"parameters are always fp32": _built(always_wide), "hidden rows are always fp32": _built(decoder(WideRows))},
    ),
    (
        soft_rows.check_blends_stand_in_for_tokens,
        {
            "weights are ignored": _blending(IgnoresWeights),
            "norms are not matched": _blending(IgnoresNorms),
            "the norms of all rows are matched": _blending(MatchesAllNorms),
            "weights are made to sum to one": _blending(MakesWeightsSumToOne),
            "blends are not fed": _blending(IgnoresBlends),
            "blends are fed to the first rows": _blending(FeedsTheFirstRows),
            "there is no blend()": _blending(CannotBlend),
        },
    ),
    (
        soft_rows.check_self_conditioning_is_heeded,
        {
            "beliefs are not fed": _conditioned(IgnoresBeliefs),
            "only the most probable token counts": _conditioned(TakesTheBest),
            "zeros count": _conditioned(LeavesZerosIn),
            "there is no soft_embeddings()": _conditioned(Decoder),
        },
    ),
)

MUTANTS: tuple[Mutant, ...] = tuple(
    Mutant(name=name, check=check, subject=subject) for check, table in _TABLE for name, subject in table.items()
)
