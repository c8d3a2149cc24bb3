"""Configuration keys of edit sampling; imports no torch."""

from __future__ import annotations

import attrs

from diffulex_core.plugin import key


@attrs.frozen(kw_only=True)
class EditOptions:
    """What `sampling_mode="edit"` reads besides the decoding thresholds."""

    max_post_edit_steps: int = key(
        16,
        "Edit sampling: a filled block takes edits in this many further forwards at most, and any block is settled "
        "with all that is proposed for it after block_size more than that.",
        minimum=0,
        generation_config=("max_post_edit_steps",),
    )
    penalty_lambda: float = key(
        0.0,
        "Edit sampling: subtracted from a position's logit of the token that stands before it in its block; 0 = none.",
        minimum=0,
        maximum=1e6,
        generation_config=("penalty_lambda",),
    )
    enable_remask: bool = key(
        False,
        "Edit sampling: in a block that is not filled, a token whose probability falls below remask_threshold returns "
        "to mask, once for each position.",
        generation_config=("enable_remask",),
    )
