"""Deliberately broken resolvers, loaders and networks, each of which the weight checks must catch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffulex_core.distributed import Seat
from diffulex_core.errors import CheckpointError
from diffulex_core.protocols import WeightResolver
from diffulex_core.weights import LoadContext, LoadReport, ResolvedWeight, ShardId
from diffulex_core.weights.ledger import Ledger
from diffulex_core.weights.resolve import Resolution
from diffulex_core.weights.storage import materialise
from tests.families.layouts import Layout, layouts
from tests.families.subjects import CPU, PLAIN, Load, Subject
from tests.families.weight_checks import CHECKS, Case

LLADA = next(subject for subject in PLAIN if subject.name == "llada")
# Queries, keys and values of one shape, and square matrices: here a swap or a turn fits.
SQUARE = attrs.evolve(LLADA, config={**LLADA.config, "n_kv_heads": LLADA.config["n_heads"]})
TIED = attrs.evolve(LLADA, config={**LLADA.config, "weight_tying": True})


class Resolver:
    """LLaDA's resolver, to be changed."""

    def __init__(self, sound: Any) -> None:
        self.sound = sound

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        resolved: ResolvedWeight | None = self.sound.resolve_checkpoint_weight(name, ctx)
        return resolved if resolved is None else self.change(name, resolved, ctx)

    def sources(self, target: str, shard_id: ShardId | None) -> Sequence[str]:
        named: Sequence[str] = self.sound.sources(target, shard_id)
        return named

    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight | None:
        return resolved


class SwapsQueriesAndKeys(Resolver):
    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight | None:
        swapped = {"q": "k", "k": "q"}.get(str(resolved.shard_id), resolved.shard_id)
        return attrs.evolve(resolved, shard_id=swapped)


class SwapsLayers(Resolver):
    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight | None:
        own = next((own for own, parameter in ctx.parameters.items() if parameter is resolved.param), "")
        other = own.replace("layers.0", "layers.?").replace("layers.1", "layers.0").replace("layers.?", "layers.1")
        return attrs.evolve(resolved, param=ctx.parameters[other])


class Doubles(Resolver):
    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight | None:
        return attrs.evolve(resolved, transform=lambda tensor: tensor * 2) if "attn_out" in name else resolved


class SkipsANorm(Resolver):
    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight | None:
        return ResolvedWeight(skip="it looked superfluous") if "ln_f" in name else resolved


class ForgetsANorm(Resolver):
    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight | None:
        return None if "ln_f" in name else resolved


class SendsTwoToOnePlace(Resolver):
    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight | None:
        gate = str(resolved.shard_id) in ("gate", "up")
        return attrs.evolve(resolved, shard_id="gate") if gate else resolved


def give_storage(network: nn.Module) -> None:
    """Storage on the CPU, NaN where it is new: its memory may hold the numbers of the network before."""
    new = [name for name, tensor in network.state_dict().items() if tensor.is_meta]
    materialise(network.requires_grad_(False), CPU)
    tensors = network.state_dict()
    for name in new:
        tensors[name].fill_(torch.nan)


class Careless(Load):
    """A loader without books: it takes every file that it finds and copies what it knows."""

    def __call__(
        self, network: nn.Module, resolver: WeightResolver, folder: Path, config: Mapping[str, Any], owner: str
    ) -> LoadReport:
        give_storage(network)
        targets = Ledger.of(network).targets
        resolve = Resolution.of(network, resolver, config, torch.float32)
        files, done = self.files(folder), 0
        with torch.no_grad():
            for file in files:
                for name, tensor in self.order(load_file(file)):
                    resolved = resolve(name)
                    if resolved is not None and resolved.skip is None:
                        part = targets[id(resolved.target)].parts[resolved.shard_id]
                        self.copy(name, tensor, part.view)
                        done += 1
        return LoadReport(files=tuple(file.name for file in files), tensors=done, skipped={}, bytes=0)

    def files(self, folder: Path) -> list[Path]:
        return sorted(folder.glob("model-*.safetensors")) or sorted(folder.glob("layer-*.safetensors"))

    def order(self, tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
        return list(tensors.items())

    def copy(self, name: str, tensor: Tensor, view: Tensor) -> None:
        view.copy_(tensor)


class TakesEveryFile(Careless):
    def files(self, folder: Path) -> list[Path]:
        return [file for file in sorted(folder.glob("*.safetensors")) if file.name != "broken.safetensors"]


class PairsByOrder(Careless):
    """Believes that keys stand before queries in every file, and layers in their order."""

    def order(self, tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
        alike = [name for name in tensors if "q_proj" in name or "k_proj" in name]
        others = [(name, tensor) for name, tensor in tensors.items() if name not in alike]
        return others + [(name, tensors[other]) for name, other in zip(sorted(alike), alike, strict=True)]


class DropsAShard(Careless):
    def copy(self, name: str, tensor: Tensor, view: Tensor) -> None:
        if "v_proj" not in name:
            view.copy_(tensor)


class DropsARow(Careless):
    def copy(self, name: str, tensor: Tensor, view: Tensor) -> None:
        view[:-1].copy_(tensor[:-1])


class WritesTwice(Careless):
    def copy(self, name: str, tensor: Tensor, view: Tensor) -> None:
        view.copy_(tensor)
        view[:1].copy_(tensor[:1])


class ClearsFirst(Careless):
    def copy(self, name: str, tensor: Tensor, view: Tensor) -> None:
        view.zero_()
        view.copy_(tensor)


class Turns(Careless):
    """Turns a matrix whenever it fits."""

    def copy(self, name: str, tensor: Tensor, view: Tensor) -> None:
        view.copy_(tensor.T if tensor.dim() == 2 and len(tensor) == len(tensor.T) else tensor)


class Broadcasts(Careless):
    def copy(self, name: str, tensor: Tensor, view: Tensor) -> None:
        view.copy_(tensor[:1] if tensor.dim() == 2 else tensor)


class StopsAtTheFirstProblem(Load):
    def __call__(
        self, network: nn.Module, resolver: WeightResolver, folder: Path, config: Mapping[str, Any], owner: str
    ) -> LoadReport:
        try:
            return super().__call__(network, resolver, folder, config, owner)
        except CheckpointError as error:
            raise CheckpointError(error.where, error.problems[:1], owner=error.owner) from error


class NamesNoPlugin(Load):
    def __call__(
        self, network: nn.Module, resolver: WeightResolver, folder: Path, config: Mapping[str, Any], owner: str
    ) -> LoadReport:
        return super().__call__(network, resolver, folder, config, "")


class NamesNoParameter(Load):
    def __call__(
        self, network: nn.Module, resolver: WeightResolver, folder: Path, config: Mapping[str, Any], owner: str
    ) -> LoadReport:
        try:
            return super().__call__(network, resolver, folder, config, owner)
        except CheckpointError as error:
            terse = [problem.replace("layers.", "").replace("embed.", "") for problem in error.problems]
            raise CheckpointError(error.where, terse, owner=error.owner) from error


class RepairsShapes(Load):
    """Cuts what is too long before anyone can notice."""

    def __call__(
        self, network: nn.Module, resolver: WeightResolver, folder: Path, config: Mapping[str, Any], owner: str
    ) -> LoadReport:
        try:
            return super().__call__(network, resolver, folder, config, owner)
        except CheckpointError as error:
            rest = [problem for problem in error.problems if "has shape" not in problem]
            if rest:
                raise CheckpointError(error.where, rest, owner=error.owner) from error
            return LoadReport(files=(), tensors=0, skipped={}, bytes=0)


def everyone_is_first(sound: Callable[..., Any]) -> Callable[..., Any]:
    """Builds every process's share as if it were the first's."""
    return lambda config, ctx: sound(config, attrs.evolve(ctx, tp=Seat(0, ctx.tp.size)))


def backwards(sound: Callable[..., Any]) -> Callable[..., Any]:
    """Builds the shares in the wrong order."""
    return lambda config, ctx: sound(config, attrs.evolve(ctx, tp=Seat(ctx.tp.size - 1 - ctx.tp.rank, ctx.tp.size)))


@cache
def last_layout(subject: Subject) -> Layout:
    """With copies, where the head is tied."""
    return list(layouts(subject))[-1]


@attrs.frozen
class Mutant:
    """What is broken, the checks that must catch it, and the sound family whose checkpoints it is given."""

    subject: Subject
    caught_by: tuple[str, ...]
    sound: Subject = SQUARE

    @property
    def case(self) -> Case:
        return Case(self.subject, last_layout(self.sound))


def resolving(resolver: type[Resolver], subject: Subject = SQUARE) -> Subject:
    return attrs.evolve(subject, resolver=resolver(subject.resolver))


def loading(load: type[Load], subject: Subject = SQUARE) -> Subject:
    return attrs.evolve(subject, load=load())


MUTANTS = {
    "swaps queries and keys": Mutant(resolving(SwapsQueriesAndKeys), ("W1", "W4")),
    "swaps layers": Mutant(resolving(SwapsLayers), ("W1", "W4")),
    "doubles a matrix": Mutant(resolving(Doubles), ("W4",)),
    "skips a norm": Mutant(resolving(SkipsANorm), ("W1", "W2", "W4")),
    "skips a norm without books": Mutant(loading(Careless, resolving(SkipsANorm)), ("W2", "W3", "W4")),
    "forgets a norm": Mutant(resolving(ForgetsANorm), ("W1", "W2")),
    "forgets a norm without books": Mutant(loading(Careless, resolving(ForgetsANorm)), ("W1", "W2", "W4")),
    "sends two to one place": Mutant(resolving(SendsTwoToOnePlace), ("W1",)),
    "sends two to one place without books": Mutant(
        loading(Careless, resolving(SendsTwoToOnePlace)), ("W1", "W2", "W3", "W4")
    ),
    "keeps no books": Mutant(loading(Careless), ("W7",)),
    "takes every file": Mutant(loading(TakesEveryFile), ("W6",)),
    "pairs by order": Mutant(loading(PairsByOrder), ("W6",)),
    "drops a shard": Mutant(loading(DropsAShard), ("W2", "W3", "W4")),
    "drops a row": Mutant(loading(DropsARow), ("W2", "W3", "W4")),
    "writes twice": Mutant(loading(WritesTwice), ("W3",)),
    "clears first": Mutant(loading(ClearsFirst), ("W3",)),
    "turns square matrices": Mutant(loading(Turns), ("W4",)),
    "broadcasts": Mutant(loading(Broadcasts), ("W4",)),
    "gives everyone the first share": Mutant(attrs.evolve(SQUARE, build=everyone_is_first(SQUARE.build)), ("W5",)),
    "gives shares backwards": Mutant(attrs.evolve(SQUARE, build=backwards(SQUARE.build)), ("W5",)),
    "stops at the first problem": Mutant(loading(StopsAtTheFirstProblem), ("W7",)),
    "names no plugin": Mutant(loading(NamesNoPlugin), ("W7",)),
    "names no parameter": Mutant(loading(NamesNoParameter), ("W7",)),
    "repairs shapes": Mutant(loading(RepairsShapes), ("W7",)),
    "does not compare ties": Mutant(loading(Careless, TIED), ("W7",), sound=TIED),
}


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        pytest.param(mutant, check, id=f"{name}-{check}")
        for name, mutant in MUTANTS.items()
        for check in mutant.caught_by
    ],
)
def test_a_broken_one_is_caught(mutant: Mutant, check: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        CHECKS[check](mutant.case, tmp_path)


def test_every_check_catches_something() -> None:
    assert {check for mutant in MUTANTS.values() for check in mutant.caught_by} == set(CHECKS)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("subject", [SQUARE, TIED], ids=["square", "tied"])
def test_the_unbroken_ones_pass(subject: Subject, check: str, tmp_path: Path) -> None:
    CHECKS[check](Case(subject, last_layout(subject)), tmp_path)
