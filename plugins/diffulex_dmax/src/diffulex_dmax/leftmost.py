"""One step of dmax: which masks are filled, what becomes of decided tokens, and whether a block is settled.

Source: the decoding rules of DMax. Pure functions of arrays over the positions of some blocks, a row for each block;
where the prompt stands, a position is decided, agrees with its token and is beyond doubt.
"""

from __future__ import annotations

import attrs
import numpy as np

from diffulex_core.plugin import BoolArray, FloatArray, IntArray


@attrs.frozen(kw_only=True, eq=False)
class Verdict:
    """What becomes of the blocks.

    Attributes:
        write: [b, n] bool: they take the proposed token, which may be the one that they have.
        changed: [b, n] bool: those of them that get another token than they had.
        confidence: [b, n] how sure the model counts as being of each proposed token.
        settled: [b] bool: nothing in the block changes any more once this is applied, if it has no mask then.
        stability: [b] share of the decided tokens that stay.
    """

    write: BoolArray
    changed: BoolArray
    confidence: FloatArray
    settled: BoolArray
    stability: FloatArray


def judge(
    *,
    tokens: IntArray,
    decided: BoolArray,
    proposed: IntArray,
    confidence: FloatArray,
    accept: float,
    confident: float,
    exact: bool,
    editable: BoolArray | None = None,
) -> Verdict:
    """Decide one step of some blocks.

    All decided positions take the proposed token. Of the masks, the leftmost ones do up to the first that is not
    confident enough, and at least one.

    Args:
        tokens, decided: [b, n] before the step.
        proposed: [b, n] chosen tokens.
        confidence: [b, n] their probabilities.
        accept: a mask is filled when its confidence is at least this.
        confident: a block may be settled when every position's confidence is at least this.
        exact: decided positions have a confidence too; otherwise they count as certain.
        editable: [b, n] bool: not prompt; None = all are.
    """
    sure = confidence.astype(np.float64)
    if not exact:
        sure[decided] = 1.0
    masks = ~decided
    doubtful = masks & (sure < accept)
    taken = masks & ~np.logical_or.accumulate(doubtful, axis=1)
    none = np.flatnonzero(masks.any(axis=1) & ~taken.any(axis=1))
    if len(none):
        taken[none, masks[none].argmax(axis=1)] = True
    differs = decided & (proposed != tokens)
    changed = differs | taken
    known = decided if editable is None else decided & editable
    return Verdict(
        write=known | taken,
        changed=changed,
        confidence=sure,
        settled=~changed.any(axis=1) | (sure >= confident).all(axis=1),
        stability=1.0 - differs.sum(axis=1) / np.maximum(known.sum(axis=1), 1),
    )
