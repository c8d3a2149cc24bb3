"""Which kind of pass a step of a canvas is, as a function of where it stands in its block."""

from __future__ import annotations

import enum

from diffulex_core.sparse.config import SparseConfig


class CachePhase(enum.Enum):
    """The kinds of passes."""

    FULL = "full"
    """The whole canvas is fed; nothing is kept."""
    REFRESH = "refresh"
    """The whole canvas is fed, and some K/V of the tokens outside the block are kept."""
    REUSE = "reuse"
    """The block is fed alone, and reads what was kept."""


def phase(config: SparseConfig, *, step: int, since: int | None, drift: float, last: bool) -> CachePhase:
    """What the next step is.

    Args:
        step: steps that the block has had.
        since: steps since the pass that kept K/V, which counts as the first of them; None = there are none, or they
            belong to other tokens.
        drift: share of the block's tokens that have changed since.
        last: the step completes the block, whatever it finds.
    """
    if step < config.delay_step:
        return CachePhase.FULL
    stale = (
        since is None
        or (config.refresh_every is not None and since >= config.refresh_every)
        or (config.refresh_drift is not None and drift >= config.refresh_drift)
    )
    if not stale:
        return CachePhase.REUSE
    # What nobody would read is not kept.
    return CachePhase.FULL if last or config.refresh_every == 1 else CachePhase.REFRESH
