"""What contenders are asked to do, and what they answer."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Work:
    """One thing to do, the same for all that take turns at it.

    Attributes:
        prompt, output: tokens of each request, and `batch` requests.
        steps: forwards; with a threshold, at most.
        block_length: positions that are decided together before the next ones.
        threshold: decide what reaches it, at least one position in each step; None = an even share in each step.
        sampled_steps: a contender whose steps all do the same work runs so many of them; None = all.
    """

    prompt: int
    output: int
    batch: int
    steps: int
    block_length: int = 32
    threshold: float | None = None
    sampled_steps: int | None = None


@attrs.frozen(kw_only=True)
class Answer:
    """What one run gave.

    Attributes:
        tokens: of each request, undecided ones as the mask.
        steps: forwards, and `planned_steps` those that the whole work would have taken.
        rows: rows that went through the network, and `head_rows` those that went through its head.
        first_block: seconds until the first block was decided, or None.
        outside: seconds of the steps that were not spent in the runner (scheduling and applying decisions), or None.
        seconds: of the run by the contender's own clock, which counts in place of ours; None = ours does. Then the CPU
            time is not known.
        peak_rss: bytes that a process of the contender's own had at most; None = it has none.
    """

    tokens: list[list[int]]
    steps: int
    planned_steps: int
    rows: int
    head_rows: int
    first_block: float | None = None
    outside: float | None = None
    seconds: float | None = None
    peak_rss: int | None = None
