"""Broken subjects for the checks of `diffulex_core.testing.checks.writes`."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from diffulex_core.testing.checks.writes import check_no_number_is_written_twice
from diffulex_core.weights import LoadContext, ResolvedWeight
from tests.conformance.broken_families import family
from tests.conformance.broken_resolvers import Resolver
from tests.conformance.mutant import Mutant


class ClearsFirst(Resolver):
    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight:
        param = resolved.param
        if name != "norm.weight" or param is None:
            return resolved

        def loader(stored: Tensor) -> None:
            with torch.no_grad():
                param.zero_()
                param.copy_(stored)

        return attrs.evolve(resolved, loader=loader)


class WritesTheLastRowAgain(Resolver):
    def change(self, name: str, resolved: ResolvedWeight, ctx: LoadContext) -> ResolvedWeight:
        param = resolved.param
        if name != "head.weight" or param is None:
            return resolved

        def loader(stored: Tensor) -> None:
            with torch.no_grad():
                param.copy_(stored)
                param[-1:].copy_(stored[-1:])

        return attrs.evolve(resolved, loader=loader)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="a parameter is cleared before it is filled",
        check=check_no_number_is_written_twice,
        subject=lambda: family(weights=ClearsFirst()),
    ),
    Mutant(
        name="the last row is written again",
        check=check_no_number_is_written_twice,
        subject=lambda: family(weights=WritesTheLastRowAgain()),
    ),
)
