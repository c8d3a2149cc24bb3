"""One step of edit sampling in one block, against the published rule in plain Python, thresholds met exactly."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given, strategies as st

from diffulex_multibd.joint_threshold import Limits, Proposal, judge

SHARES = [0.0, 0.25, 0.5, 0.75, 1.0]
share = st.sampled_from(SHARES)


@attrs.frozen(kw_only=True)
class Position:
    """What is known of one position of a block before a step."""

    token: int
    decided: bool
    proposed: int
    confidence: float
    believed: float


positions = st.builds(
    Position,
    token=st.integers(0, 2),
    decided=st.booleans(),
    proposed=st.integers(0, 2),
    confidence=share,
    believed=share,
)


@given(
    block=st.lists(positions, min_size=1, max_size=6),
    accept=share,
    edit=share,
    remask=st.none() | share,
    width=st.integers(6, 8),
    most=st.integers(0, 3),
    earlier=st.integers(0, 12),
    full=st.integers(0, 5),
)
def test_a_block_is_judged_by_the_published_rule(
    block: list[Position],
    accept: float,
    edit: float,
    remask: float | None,
    width: int,
    most: int,
    earlier: int,
    full: int,
) -> None:
    verdict = judge(
        Proposal(
            tokens=np.array([[each.token for each in block]]),
            decided=np.array([[each.decided for each in block]]),
            proposed=np.array([[each.proposed for each in block]]),
            confidence=np.array([[each.confidence for each in block]], dtype=np.float32),
        ),
        Limits(accept=accept, edit=edit, remask=remask, block_size=width, max_post_edit_steps=most),
        earlier_steps=np.array([float(earlier)]),
        post_edit_steps=np.array([float(full)]),
        believed=None if remask is None else np.array([[each.believed for each in block]], dtype=np.float32),
    )
    [write], [settled_now], [stability] = verdict.write, verdict.settled, verdict.stability
    [reopen] = np.zeros_like(verdict.write) if verdict.reopen is None else verdict.reopen
    masks = [at for at, each in enumerate(block) if not each.decided]
    known = [at for at, each in enumerate(block) if each.decided]
    differing = [at for at in known if block[at].proposed != block[at].token]
    edits = [at for at in differing if block[at].confidence > edit]
    fills = [at for at in masks if block[at].confidence > accept]
    if masks and not fills:
        surest = max(block[at].confidence for at in masks)
        fills = [next(at for at in masks if block[at].confidence == surest)]
    writes, reopened, settled = sorted(fills + edits), list[int](), False
    agreement = 1 - len(differing) / len(known) if known else 1.0
    if earlier >= width + most:
        writes, settled, agreement = sorted(masks + edits), True, 1.0
    elif not writes or (not masks and full > most):
        writes, settled = [], True
    elif masks and remask is not None:
        reopened = [at for at in known if at not in edits and block[at].believed < remask]
    assert np.flatnonzero(write).tolist() == writes
    assert np.flatnonzero(reopen).tolist() == reopened
    assert settled_now == settled
    assert stability == pytest.approx(agreement)
