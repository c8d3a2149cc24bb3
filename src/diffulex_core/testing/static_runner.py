"""The engine's runner with steps of static shape, on any device: what would be a graph is run again."""

from __future__ import annotations

from typing import Any

from diffulex_core.graphs import Limits, Rerun, StaticForward
from diffulex_core.protocols import DiffusionModel
from diffulex_core.runner import EagerRunner

LIMITS = Limits(decode_rows=256, prefill_rows=256, pages=64)
"""More than the kit's small steps have, prompts included."""


def static_runner(*, model: DiffusionModel, **given: Any) -> EagerRunner:
    """Of the keywords that `EagerRunner` takes."""
    forward = StaticForward(network=model, graphs=Rerun(), limits=LIMITS)
    return EagerRunner(model=model, forward=forward, **given)
