"""The layers of a network that an adapter can reach, under the paths that the checkpoint gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
from torch import nn

from diffulex_core.layers.linear import Embedding, Multiplies, VocabHead
from diffulex_core.protocols import WeightResolver
from diffulex_core.weights.files import take_inventory
from diffulex_core.weights.ledger import Ledger, Target
from diffulex_core.weights.resolve import Resolution
from diffulex_core.weights.types import NamesSources, Part, ResolvedWeight

WEIGHT = ".weight"


@attrs.frozen(kw_only=True, eq=False)
class Site:
    """The place of one linear layer's weight, all of a parameter or a part of one.

    Attributes:
        path: of the layer in the checkpoint, where its weight is called `path.weight`.
        label: how messages call the parameter.
        part: what this process holds of the weight [out, in].
        weight: the whole parameter.
        owner: the module whose parameter it is.
    """

    path: str
    label: str
    part: Part
    weight: nn.Parameter
    owner: nn.Module

    @property
    def is_head(self) -> bool:
        """Whether it gives the logits."""
        return isinstance(self.owner, VocabHead)

    def layer(self) -> Multiplies | None:
        """The layer that multiplies by this parameter, of which the part is some rows; None if there is none."""
        owner, view = self.owner, self.part.view
        whole_rows = view.stride() == self.weight.stride() and view.shape[1:] == self.weight.shape[1:]
        return owner if isinstance(owner, Multiplies) and owner.weight is self.weight and whole_rows else None

    def first_output(self) -> int:
        """Where the outputs of this part begin among those of the whole parameter."""
        return (self.part.view.storage_offset() - self.weight.storage_offset()) // self.weight.stride(0)


@attrs.frozen(kw_only=True)
class Obstacle:
    """Why an adapter cannot reach a layer.

    Attributes:
        reason: to be put behind the layer's name.
        absent: whether the model has no such layer at all, so that a rule which covers it means others.
    """

    reason: str
    absent: bool = False


@attrs.frozen(kw_only=True, eq=False)
class Sites:
    """Finds layers by their paths.

    Attributes:
        network: it holds the loaded weights.
        resolve: where a checkpoint tensor goes.
        targets: the network's parameters and what fills them, by identity.
        matrices: paths of all layers whose weight is a matrix in the checkpoint.
    """

    network: nn.Module
    resolve: Resolution
    targets: Mapping[int, Target]
    matrices: frozenset[str]

    @classmethod
    def of(cls, network: nn.Module, resolver: WeightResolver, resolve: Resolution, checkpoint: Path) -> Sites:
        """List the layers of a checkpoint; one without weights is known by what the family's rules expect."""
        targets = Ledger.of(network).targets
        stored = take_inventory(checkpoint).tensors
        names = {tensor.name for tensor in stored if tensor.shape is not None and len(tensor.shape) == 2}
        if not stored and isinstance(resolver, NamesSources):
            names = set(_expected(targets, resolver))
        matrices = (name.removesuffix(WEIGHT) for name in names if name.endswith(WEIGHT))
        return cls(network=network, resolve=resolve, targets=targets, matrices=frozenset(matrices))

    def find(self, path: str) -> Site | Obstacle:
        """The place of a layer's weight, or why there is none."""
        resolved = self.resolve(path + WEIGHT)
        if resolved is None:
            return Obstacle(reason="has no place in this model", absent=True)
        if resolved.skip is not None:
            return Obstacle(reason=f"is left out of this model: {resolved.skip}", absent=True)
        return self._site(path, resolved)

    def _site(self, path: str, resolved: ResolvedWeight) -> Site | Obstacle:
        target = self.targets[id(resolved.target)]
        part, label = target.parts[resolved.shard_id], target.label(resolved.shard_id)
        owner = self.network.get_submodule(target.names[0].rpartition(".")[0])
        if len(target.names) > 1 or resolved.copied:
            return Obstacle(reason=f"shares its weight with another layer ({label}); an adapter would change both")
        if isinstance(owner, Embedding):
            return Obstacle(reason=f"is an embedding ({label}); adapters over embeddings are not supported")
        if resolved.param is None or resolved.transform or resolved.loader or len(part.shape) != 2:
            return Obstacle(reason=f"is not held as it is stored ({label}); an adapter cannot be added to it")
        return Site(path=path, label=label, part=part, weight=resolved.param, owner=owner)


def _expected(targets: Mapping[int, Target], resolver: NamesSources) -> Iterator[str]:
    for target in targets.values():
        for name in target.names:
            for shard, part in target.parts.items():
                if len(part.shape) == 2:
                    yield from resolver.sources(name, shard)
