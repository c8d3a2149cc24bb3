"""The visibility of the strategy fast_dllm_v2."""

from __future__ import annotations

from diffulex_core.plugin import AttentionPattern, BlockCausal


def block_causal(block_size: int) -> AttentionPattern:
    """Every row sees everything up to the end of its own block, in which there are several sub-blocks."""
    return BlockCausal(block_size=block_size)
