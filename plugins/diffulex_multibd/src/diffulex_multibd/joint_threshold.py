"""One block's step of edit sampling: which masks are filled, which tokens replaced, and whether the block is settled.

Source: the decoding rules of LLaDA2.1 ("JointThreshold"). Pure functions of arrays over the block's editable positions.
"""

from __future__ import annotations

import attrs
import numpy as np

from diffulex_core.plugin import BoolArray, FloatArray, IntArray


@attrs.frozen(kw_only=True, eq=False)
class Proposal:
    """What is known of a block's editable positions when a step was sampled.

    Attributes:
        tokens: [n] int64 before the step.
        decided: [n] bool before the step.
        proposed: [n] int64 chosen token of each.
        confidence: [n] probability of the chosen token.
    """

    tokens: IntArray
    decided: BoolArray
    proposed: IntArray
    confidence: FloatArray


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
    """What becomes of a block's editable positions; masks over them.

    Attributes:
        write: they take the proposed token.
        reopen: they return to mask.
        settled: nothing in the block changes any more once this is applied.
        stability: share of the decided tokens that the model would choose again.
    """

    write: BoolArray
    reopen: BoolArray
    settled: bool
    stability: float


def judge(
    proposal: Proposal,
    limits: Limits,
    *,
    earlier_steps: int,
    post_edit_steps: int,
    believed: FloatArray | None,
    may_reopen: BoolArray,
) -> Verdict:
    """Decide one step of one block.

    Args:
        proposal: the sampler's answers.
        limits: of the request.
        earlier_steps: forwards in which the block was sampled before this one.
        post_edit_steps: those of them in which it had no mask, and this one if it has none.
        believed: [n] probability of the token that stands at each position; None = not known.
        may_reopen: [n] positions that never returned to mask.
    """
    decided, confidence = proposal.decided, proposal.confidence.astype(np.float64)
    masks = ~decided
    differs = decided & (proposal.proposed != proposal.tokens)
    edit = differs & (confidence > limits.edit)
    nothing = np.zeros_like(decided)
    if earlier_steps >= limits.block_size + limits.max_post_edit_steps:
        return Verdict(write=masks | edit, reopen=nothing, settled=True, stability=1.0)
    stability = 1.0 - float(differs.sum()) / max(int(decided.sum()), 1)
    moved = edit | _filled(masks, confidence, limits.accept)
    if not masks.any() and (not moved.any() or post_edit_steps > limits.max_post_edit_steps):
        return Verdict(write=nothing, reopen=nothing, settled=True, stability=stability)
    reopen = nothing
    if masks.any() and limits.remask is not None and believed is not None:
        reopen = decided & ~edit & may_reopen & (believed.astype(np.float64) < limits.remask)
    return Verdict(write=moved, reopen=reopen, settled=False, stability=stability)


def _filled(masks: BoolArray, confidence: FloatArray, threshold: float) -> BoolArray:
    """The confident masks, else the most confident one, the first of equals; none where there is no mask."""
    sure = masks & (confidence > threshold)
    if not sure.any() and masks.any():
        sure[int(np.argmax(np.where(masks, confidence, -1.0)))] = True
    return sure
