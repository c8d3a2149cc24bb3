"""diffulex with batteries included: the public names of the core, loaded on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffulex_core.engine import Diffulex
    from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
    from diffulex_core.sparse import SparseConfig

__all__ = ["DecodingThresholds", "Diffulex", "SamplingParams", "SparseConfig"]

__version__ = "0.1.0"

_HOMES = {
    "DecodingThresholds": "diffulex_core.sampling_params",
    "Diffulex": "diffulex_core.engine",
    "SamplingParams": "diffulex_core.sampling_params",
    "SparseConfig": "diffulex_core.sparse",
}


def __getattr__(name: str) -> object:
    """Import the home of a public name when it is first asked for, so that `import diffulex` costs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
