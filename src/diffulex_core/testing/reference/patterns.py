"""The kit's attention patterns."""

from __future__ import annotations

from diffulex_core.pattern import AttentionPattern, BlockCausal, FullPrefix


def block_causal(block_size: int) -> AttentionPattern:
    """Every block sees itself and what stands before it."""
    return BlockCausal(block_size=block_size)


def full_prefix(block_size: int) -> AttentionPattern:
    """As block-causal, and a prompt sees the whole of itself."""
    return FullPrefix(block_size=block_size)
