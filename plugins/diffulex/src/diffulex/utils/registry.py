"""What plugins provide, by name, with provenance."""

from diffulex_core.registry import Entry, Provenance, Registry

__all__ = ["Entry", "Provenance", "Registry"]
