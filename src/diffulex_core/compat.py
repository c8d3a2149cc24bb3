"""Which families and strategies fit: a strategy's needs against a family's abilities, never lists of names."""

from __future__ import annotations

from collections.abc import Iterable

from diffulex_core.descriptors import DecodingStrategy, ModelFamily
from diffulex_core.errors import IncompatibleError


def missing_capabilities(family: ModelFamily, strategy: DecodingStrategy) -> frozenset[str]:
    """Capabilities that the strategy requires and the family does not provide; empty when they fit.

    How a family's logits are aligned counts as a capability: `aligned_logits` or `shifted_logits`.
    """
    return strategy.requires - family.provides - {f"{family.logits}_logits"}


def require_compatible(
    family: ModelFamily, strategy: DecodingStrategy, *, strategies: Iterable[DecodingStrategy]
) -> None:
    """Do nothing when the two fit.

    Args:
        family: the model.
        strategy: the one asked for.
        strategies: all that are registered, to propose one that fits.
    Raises:
        IncompatibleError: names both, what is missing, and the strategies that fit the family.
    """
    missing = missing_capabilities(family, strategy)
    if not missing:
        return
    fitting = sorted(other.name for other in strategies if not missing_capabilities(family, other))
    advice = (
        f"Choose decoding_strategy={' or '.join(map(repr, fitting))}, or a model that provides it."
        if fitting
        else "No registered strategy fits this family; install one that does, or choose another model."
    )
    problem = (
        f"The decoding strategy {strategy.name!r} requires {', '.join(sorted(missing))}, which the model family "
        f"{family.name!r} does not provide. {advice}"
    )
    raise IncompatibleError([problem])
