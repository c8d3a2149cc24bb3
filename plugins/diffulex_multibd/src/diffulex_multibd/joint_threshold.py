"""One step of edit sampling: which masks are filled, which tokens replaced, and whether a block is settled.

Source: the decoding rules of LLaDA2.1 ("JointThreshold"). Pure functions of arrays over the positions of some blocks, a
row for each block; where the prompt stands, a position is decided, agrees with its token and is beyond doubt.
"""

from __future__ import annotations

import attrs
import numpy as np

from diffulex_core.plugin import BoolArray, FloatArray, IntArray


@attrs.frozen(kw_only=True, eq=False)
class Proposal:
    """What is known of the positions of b blocks when a step was sampled.

    Attributes:
        tokens: [b, n] int64 before the step.
        decided: [b, n] bool before the step.
        proposed: [b, n] int64 chosen token of each.
        confidence: [b, n] probability of the chosen token.
        editable: [b, n] bool: not prompt; None = all are.
    """

    tokens: IntArray
    decided: BoolArray
    proposed: IntArray
    confidence: FloatArray
    editable: BoolArray | None = None


@attrs.frozen(kw_only=True)
class Limits:
    """Thresholds and limits of a request.

    Attributes:
        accept: a mask is filled when its confidence is strictly greater.
        edit: a token is replaced when the new one's confidence is strictly greater.
        remask: a token less probable than this returns to mask; None = never.
        block_size: tokens per block.
        max_post_edit_steps: see `EditOptions`.
    """

    accept: float
    edit: float
    remask: float | None
    block_size: int
    max_post_edit_steps: int


@attrs.frozen(kw_only=True, eq=False)
class Verdict:
    """What becomes of the blocks.

    Attributes:
        write: [b, n] bool: they take the proposed token.
        reopen: [b, n] bool: they may return to mask; None = none does.
        settled: [b] bool: nothing in the block changes any more once this is applied.
        stability: [b] share of the decided tokens that the model would choose again.
    """

    write: BoolArray
    reopen: BoolArray | None
    settled: BoolArray
    stability: FloatArray


def judge(
    proposal: Proposal,
    limits: Limits,
    *,
    earlier_steps: FloatArray,
    post_edit_steps: FloatArray,
    believed: FloatArray | None,
) -> Verdict:
    """Decide one step of some blocks.

    Args:
        proposal: the sampler's answers.
        limits: of the requests.
        earlier_steps: [b] forwards in which the block was sampled before this one.
        post_edit_steps: [b] those of them in which it had no mask, and this one if it has none.
        believed: [b, n] probability of the token that stands at each position; None = not known.
    """
    decided, confidence = proposal.decided, proposal.confidence.astype(np.float64)
    masks = ~decided
    differs = decided & (proposal.proposed != proposal.tokens)
    edit = differs & (confidence > limits.edit)
    open_masks = np.logical_or.reduce(masks, axis=1)
    overdue = earlier_steps >= limits.block_size + limits.max_post_edit_steps
    known = decided if proposal.editable is None else decided & proposal.editable
    stability = 1.0 - differs.sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    moved = edit | _filled(masks, open_masks, confidence, limits.accept)
    settled = ~open_masks & (~moved.any(axis=1) | (post_edit_steps > limits.max_post_edit_steps))
    write = np.where(overdue[:, None], masks | edit, moved & ~settled[:, None])
    reopen = None
    if limits.remask is not None and believed is not None:
        may = (open_masks & ~overdue)[:, None]
        reopen = may & decided & ~edit & (believed.astype(np.float64) < limits.remask)
    return Verdict(write=write, reopen=reopen, settled=settled | overdue, stability=np.where(overdue, 1.0, stability))


def _filled(masks: BoolArray, open_masks: BoolArray, confidence: FloatArray, threshold: float) -> BoolArray:
    """The confident masks, else a block's most confident one, the first of equals; none where there is no mask."""
    sure = masks & (confidence > threshold)
    doubtful = np.flatnonzero(open_masks & ~sure.any(axis=1))
    if len(doubtful):
        best = np.where(masks[doubtful], confidence[doubtful], -1.0).argmax(axis=1)
        sure[doubtful, best] = True
    return sure
