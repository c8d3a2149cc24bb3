"""How many positions each step decides: the published schedules, as functions of whole numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def spread(total: int, parts: int) -> tuple[int, ...]:
    """`total` as the sum of `parts` numbers that differ by one at most, the larger first."""
    least, more = divmod(total, parts)
    return tuple(least + (part < more) for part in range(parts))


def quota(masks: int, steps: int) -> int:
    """Positions that the next of `steps` steps decides when `masks` are left: as many as the rest needs on average.

    From step to step it gives the balanced numbers of LLaDA's published sampler, `spread(masks, steps)`; it also holds
    where positions were decided otherwise in between.
    """
    return min(-(-masks // steps), masks) if steps > 0 else masks


def block_steps(length: int, block_length: int, steps: int) -> tuple[int, ...]:
    """Steps of each block of a canvas: `steps` spread over the blocks, at least one for each.

    The last block may be shorter; where the steps do not divide evenly, earlier blocks have one more.
    """
    return tuple(max(1, share) for share in spread(steps, -(-length // block_length)))


def time_grid(steps: int, eps: float) -> NDArray[np.float32]:
    """[steps + 1] Dream's times, evenly from 1 to `eps`, in float32 and counted from the nearer end."""
    end = np.float32(eps)
    width = np.float32((end - np.float32(1)) / np.float32(steps))
    at = np.arange(steps + 1)
    below = np.float32(1) + width * at.astype(np.float32)
    above = end - width * (steps - at).astype(np.float32)
    return np.where(at < (steps + 1) // 2, below, above).astype(np.float32)


def decided_share(grid: NDArray[np.float32], step: int) -> np.float32:
    """Share of the masks left that step `step` of a time grid decides; 1 in the last step and after it."""
    if step >= len(grid) - 2:
        return np.float32(1)
    return np.float32(np.float32(1) - grid[step + 1] / grid[step])


def grid_quota(masks: int, grid: NDArray[np.float32], step: int) -> int:
    """Positions that step `step` of a time grid decides when `masks` are left, in float32 and rounded down."""
    return int(np.float32(masks) * decided_share(grid, step))
