"""Every model family that the installed first-party plugins register, ready to be loaded and broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from diffulex_core.context import BuildContext
from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.host import Host
from diffulex_core.plugin import ModelFamily
from diffulex_core.protocols import WeightResolver
from diffulex_core.registry import Entry
from diffulex_core.weights import LoadReport, load_weights

CPU = torch.device("cpu")
FIRST_PARTY = "diffulex-"
TIE_KEYS = ("tie_word_embeddings", "weight_tying")


class Load:
    """How a checkpoint gets into a network. Mutants replace it."""

    def __call__(
        self, network: nn.Module, resolver: WeightResolver, folder: Path, config: Mapping[str, Any], owner: str
    ) -> LoadReport:
        return load_weights(
            network, resolver, folder, config, dtype=torch.float32, device=CPU, progress=False, owner=owner
        )


@attrs.frozen(kw_only=True, eq=False)
class Subject:
    """A family with one config.json.

    Attributes:
        name: of the family, and what is special about the config.json.
        entry: the descriptor and the plugin that it comes from.
        config: the config.json.
        build, resolver, check: what the descriptor refers to.
        load: the loader.
    """

    name: str
    entry: Entry[ModelFamily]
    config: Mapping[str, Any]
    build: Callable[[Mapping[str, Any], BuildContext], Any]
    resolver: WeightResolver
    check: Callable[[Mapping[str, Any]], list[str]]
    load: Load = attrs.field(factory=Load)

    @property
    def family(self) -> ModelFamily:
        return self.entry.descriptor

    @property
    def owner(self) -> str:
        """The family and its plugin, as messages name them."""
        return f"the model family '{self.family.name}' ({self.entry.provenance.release})"

    def network(self, tp: Communicator = ALONE, *, device: str = "meta") -> nn.Module:
        """One process's share, without weights; on the CPU every number is NaN, or the least whole one."""
        network = self.build(self.config, BuildContext(dtype=torch.float32, device=torch.device(device), tp=tp))
        assert isinstance(network, nn.Module)
        if device != "meta":
            for tensor in network.state_dict(keep_vars=True).values():
                with torch.no_grad():
                    tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)
        return network

    def loaded(self, folder: Path, tp: Communicator = ALONE) -> nn.Module:
        """One process's share with the weights of a checkpoint."""
        network = self.network(tp)
        self.load(network, self.resolver, folder, self.config, self.owner)
        return network

    def __str__(self) -> str:
        return self.name


@cache
def host() -> Host:
    """The installed plugins."""
    return Host.discover(environ={})


def families() -> list[Entry[ModelFamily]]:
    """Every registered family of a first-party plugin."""
    return [entry for entry in host().models.entries() if entry.provenance.dist.startswith(FIRST_PARTY)]


def subject(entry: Entry[ModelFamily]) -> Subject:
    """The family with its small config.json."""
    family, provenance = entry.descriptor, entry.provenance
    assert family.tiny, f"{family.name} brings no small config.json for tests"
    assert family.check_config, f"{family.name} does not check a config.json"
    return Subject(
        name=family.name,
        entry=entry,
        config=dict(host().load(family.tiny, provenance=provenance)),
        build=host().load(family.build, provenance=provenance),
        resolver=host().load(family.weights, provenance=provenance),
        check=host().load(family.check_config, provenance=provenance),
    )


def with_tie_flipped(plain: Subject) -> Iterator[Subject]:
    """The same family with the head tied if it was not, and the other way round, where the family can do both."""
    for key in TIE_KEYS:
        if key in plain.config:
            config = {**plain.config, key: not plain.config[key]}
            if not plain.check(config):
                yield attrs.evolve(plain, name=f"{plain.name} with {key} {config[key]}", config=config)


PLAIN = [subject(entry) for entry in families()]
SUBJECTS = [variant for plain in PLAIN for variant in (plain, *with_tie_flipped(plain))]
