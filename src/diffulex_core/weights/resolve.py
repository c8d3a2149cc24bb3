"""Whom to ask where a checkpoint tensor goes, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
import torch
from torch import nn

from diffulex_core.protocols import WeightResolver
from diffulex_core.weights.types import LoadContext, ResolvedWeight


@attrs.frozen(kw_only=True, eq=False)
class Resolution:
    """Everyone who may know the place of a tensor in one network.

    Attributes:
        modules: the network's own modules that are resolvers, by path; the network itself under "".
        resolver: the family's.
        context: what they may look at.
    """

    modules: Mapping[str, WeightResolver]
    resolver: WeightResolver
    context: LoadContext

    @classmethod
    def of(
        cls, network: nn.Module, resolver: WeightResolver, config: Mapping[str, object], dtype: torch.dtype
    ) -> Resolution:
        """Ask the modules of a network and the family's resolver; targets are the network's tensors as they are now."""
        return cls(
            modules={path: module for path, module in network.named_modules() if isinstance(module, WeightResolver)},
            resolver=resolver,
            context=LoadContext(
                config=config,
                full_name="",
                dtype=dtype,
                parameters=dict(network.named_parameters(remove_duplicate=False)),
                buffers=dict(network.named_buffers(remove_duplicate=False)),
            ),
        )

    def __call__(self, name: str) -> ResolvedWeight | None:
        """Where the checkpoint tensor `name` goes, or None when nobody knows.

        Of the network's modules the one whose path is the longest prefix of the name is asked first, with the rest of
        the name, then shorter ones, at last the network itself with all of it; the first answer holds. Then the family
        is asked. A name that is still unknown may be the network's own for a parameter or buffer.
        """
        ctx = attrs.evolve(self.context, full_name=name)
        for resolver, suffix in self._askable(name):
            resolved = resolver.resolve_checkpoint_weight(suffix, ctx)
            if resolved is not None:
                return resolved
        if name in ctx.parameters:
            return ResolvedWeight(param=ctx.parameters[name])
        return ResolvedWeight(buffer=ctx.buffers[name]) if name in ctx.buffers else None

    def _askable(self, name: str) -> Iterator[tuple[WeightResolver, str]]:
        path = name
        while path:
            path = path.rpartition(".")[0]
            if path in self.modules:
                yield self.modules[path], name.removeprefix(f"{path}." if path else "")
        yield self.resolver, name
