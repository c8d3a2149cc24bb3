"""Configuration keys of dmax; imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs

from diffulex_core.plugin import key

MergeMode = Literal["dmax_topk", "iter_smooth_topk"]


@attrs.frozen(kw_only=True)
class DMaxOptions:
    """What dmax reads besides the decoding thresholds."""

    token_merge_mode: MergeMode = key(
        "dmax_topk",
        "What a decided position is fed: dmax_topk = its probable tokens' embeddings by probability, the rest of it "
        "the mask's; iter_smooth_topk = its token's embedding plus token_merge_weight times the probable ones'.",
        generation_config=("token_merge_mode",),
    )
    token_merge_top_k: int = key(
        1, "Tokens that are merged at each position.", minimum=1, maximum=256, generation_config=("token_merge_top_k",)
    )
    token_merge_renormalize: bool = key(
        True,
        "dmax_topk: scale the merged embedding to the mean norm of those it is made of.",
        aliases=("token_merge_norm_match",),
        generation_config=("token_merge_renormalize",),
    )
    token_merge_weight: float = key(
        1.0,
        "iter_smooth_topk: factor on the probable tokens' embeddings. In either mode 0 turns merging off.",
        minimum=0,
        maximum=1e6,
        generation_config=("token_merge_weight",),
    )
    dmax_sampler_fast_path: bool = key(
        True,
        "Take decided tokens for certain: they are fed plainly, and a block without masks is stored after one more "
        "forward.",
        generation_config=("dmax_sampler_fast_path",),
    )
    exact_confidence: bool | None = key(
        None,
        "Decided tokens have the probability that the model gives them now; null = the opposite of "
        "dmax_sampler_fast_path, which is not asked otherwise.",
        generation_config=("exact_confidence",),
    )
    confident_commit_threshold: float = key(
        0.9,
        "A filled block is stored once every position is at least this confident, although tokens still change.",
        minimum=0,
        maximum=1,
        generation_config=("confident_commit_threshold",),
    )
    max_post_edit_steps: int = key(
        16,
        "Further forwards that may leave a filled block open; the next one settles it.",
        minimum=0,
        generation_config=("max_post_edit_steps",),
    )

    @property
    def exact(self) -> bool:
        """Whether decided tokens have a confidence of their own."""
        return not self.dmax_sampler_fast_path if self.exact_confidence is None else self.exact_confidence

    @property
    def merges(self) -> bool:
        """Whether embeddings are merged at all."""
        return self.token_merge_weight > 0
