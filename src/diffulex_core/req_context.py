"""What the requests of an engine share: the strategy's pattern, the family's rules, limits and defaults.

Importing this module imports no torch.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs

from diffulex_core.pattern import AttentionPattern
from diffulex_core.sampling_params import DecodingThresholds
from diffulex_core.sparse.config import SparseConfig

ForceRule = Literal["after_semi_complete", "always"]
"""When a block decides its most confident token although none passes the threshold: once its predecessor is
semi-complete (a block without predecessor counts as that), or in every step."""


@attrs.frozen(kw_only=True)
class ReqContext:
    """What every request of an engine shares; built once when the engine is assembled.

    Attributes:
        pattern: visibility of the strategy.
        buffer_size: most blocks that run at once.
        mask_token_id: fills undecided positions, never decided; None for families without one.
        eos_token_ids: tokens that end an answer unless the request ignores them.
        max_model_len: most positions of a sequence, prompt included.
        thresholds: the engine's defaults; requests may override them.
        shifted: row i of the logits predicts position i + 1, not i.
        force_rule: the family's rule for deciding one token when none is confident enough.
        auto_nfe: derived NFE cap, or None when it is off.
        options: instance of the strategy's `config_cls`; None where it has none.
        vocab_size: ids below this may be fed and decided; None = unknown, which only a hand-made context may say.
        sparse: the cache of canvas requests that say nothing of it.
    """

    pattern: AttentionPattern
    buffer_size: int
    mask_token_id: int | None
    eos_token_ids: frozenset[int]
    max_model_len: int
    thresholds: DecodingThresholds
    shifted: bool = False
    force_rule: ForceRule = "after_semi_complete"
    auto_nfe: AutoNFE | None = None
    options: Any = None
    vocab_size: int | None = None
    sparse: SparseConfig = SparseConfig(enabled=False)


@attrs.frozen(kw_only=True)
class AutoNFE:
    """Opt-in cap on forwards of requests that set none.

    A request may take `max_tokens / tpf_floor` forwards, but at least `warmup_steps`: one whose mean over the whole
    answer stays below the floor is cut off. The mean so far is not used, so a slow stretch after a fast start is fine.
    Forwards that only read the prompt, or read it again after a preemption, are not counted.

    Attributes:
        warmup_steps: forwards that every request may take.
        tpf_floor: fewest tokens per forward, over the whole answer.
    """

    warmup_steps: int = 8
    tpf_floor: float = 1.0
