"""What a resolver of checkpoint tensors is given and what it answers."""

from diffulex_core.weights import LoadContext, ResolvedWeight

__all__ = ["LoadContext", "ResolvedWeight"]
