"""How many positions each step decides: the published schedules, as functions of whole numbers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from diffulex_core.pattern import IntArray


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
    """[steps + 1] Dream's times, evenly from 1 to `eps`, to the bit as torch has them: quotas are rounded down."""
    grid: NDArray[np.float32] = torch.linspace(1, eps, steps + 1, dtype=torch.float32).numpy()
    return grid


def decided_share(grid: NDArray[np.float32], step: int) -> np.float32:
    """Share of the masks left that step `step` of a time grid decides; 1 in the last step and after it."""
    return np.float32(decided_shares(grid, np.array([step]))[0])


def decided_shares(grid: NDArray[np.float32], steps: IntArray) -> NDArray[np.float32]:
    """[n] `decided_share` of several steps."""
    last = len(grid) - 2
    at = np.minimum(steps, last)
    shares = np.float32(1) - grid[at + 1] / grid[at]
    return np.where(steps >= last, np.float32(1), shares)


def grid_quota(masks: int, grid: NDArray[np.float32], step: int) -> int:
    """Positions that step `step` of a time grid decides when `masks` are left, in float32 and rounded down."""
    return int(np.float32(masks) * decided_share(grid, step))
