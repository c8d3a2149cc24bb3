"""The visibility of the two strategies, by block size."""

from __future__ import annotations

from diffulex_core.plugin import AttentionPattern, BlockCausal, FullPrefix


def block_causal(block_size: int) -> AttentionPattern:
    """Every row sees everything up to the end of its own block (multi_bd)."""
    return BlockCausal(block_size=block_size)


def full_prefix(block_size: int) -> AttentionPattern:
    """Prompt rows see the whole prompt, what follows is block-causal (d2f)."""
    return FullPrefix(block_size=block_size)
