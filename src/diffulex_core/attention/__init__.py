"""Attention backends and how one is chosen. Backends are imported on use."""

from diffulex_core.attention.case import AttentionCase
from diffulex_core.attention.select import probe_backends, select_backend

__all__ = ["AttentionCase", "probe_backends", "select_backend"]
