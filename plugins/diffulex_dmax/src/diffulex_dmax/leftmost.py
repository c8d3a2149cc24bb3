"""One block's step of dmax: which masks are filled, what becomes of decided tokens, and whether the block is settled.

Source: the decoding rules of DMax. Pure functions of arrays over the block's positions that are not prompt.
"""

from __future__ import annotations

import attrs
import numpy as np

from diffulex_core.plugin import BoolArray, FloatArray, IntArray


@attrs.frozen(kw_only=True, eq=False)
class Verdict:
    """What becomes of a block's positions.

    Attributes:
        write: [n] bool: they take the proposed token, which may be the one that they have.
        changed: [n] bool: those of them that get another token than they had.
        confidence: [n] how sure the model counts as being of each proposed token.
        settled: nothing in the block changes any more once this is applied, if it has no mask then.
        stability: share of the decided tokens that stay.
    """

    write: BoolArray
    changed: BoolArray
    confidence: FloatArray
    settled: bool
    stability: float


def judge(
    *,
    tokens: IntArray,
    decided: BoolArray,
    proposed: IntArray,
    confidence: FloatArray,
    accept: float,
    confident: float,
    exact: bool,
) -> Verdict:
    """Decide one step of one block.

    All decided positions take the proposed token. Of the masks, the leftmost ones do up to the first that is not
    confident enough, and at least one.

    Args:
        tokens, decided: [n] before the step.
        proposed: [n] chosen tokens.
        confidence: [n] their probabilities.
        accept: a mask is filled when its confidence is at least this.
        confident: the block may be settled when every position's confidence is at least this.
        exact: decided positions have a confidence too; otherwise they count as certain.
    """
    sure = confidence.astype(np.float64)
    if not exact:
        sure[decided] = 1.0
    masks = np.flatnonzero(~decided)
    doubtful = np.flatnonzero(sure[masks] < accept)
    run = int(doubtful[0]) if len(doubtful) else len(masks)
    taken = np.zeros_like(decided)
    taken[masks[: max(run, 1)]] = True
    differs = decided & (proposed != tokens)
    changed = differs | taken
    return Verdict(
        write=decided | taken,
        changed=changed,
        confidence=sure,
        settled=bool(not changed.any() or (sure >= confident).all()),
        stability=1.0 - float(differs.sum()) / max(int(decided.sum()), 1),
    )
