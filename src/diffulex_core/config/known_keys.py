"""Key names that the core recognises but does not own: without meaning here, per request, or another package's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

WITHOUT_MEANING: Mapping[str, str] = MappingProxyType(
    {
        "dmax_force_prefill_active": "prefill and decode share one forward, so there is no prefill path to stay on",
        "multi_block_prefix_full": "the decoding strategy decides who sees the prompt; choose d2f or multi_bd",
        "device_start": "choose devices with device or device_ids",
        "shm_name": "every engine names its own shared memory",
        "k_cache_hdim_split_factor_x": "the unified cache layout does not split heads",
    }
)
"""Accepted with a warning; the value says why the key does nothing."""

PER_REQUEST: frozenset[str] = frozenset(
    {
        "temperature",
        "max_tokens",
        "max_nfe",
        "max_repetition_run",
        "ignore_eos",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "stop_token_ids",
        "confidence",
        "logit_bias",
        "logprobs",
        "skip_special_tokens",
        "gen_length",
        "steps",
        "block_length",
        "cfg_scale",
        "remasking",
        "suppress_eos",
        "defer_eos",
        "alg",
        "alg_temp",
        "eps",
        "skip_empty_steps",
    }
)
"""Settings of `SamplingParams`."""

_KEYS_OF_PACKAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "diffulex-fastdllm": ("fdv2_graph_modes",),
    }
)

TABLES: Mapping[str, str] = MappingProxyType({"serve": "diffulex-serve", "chat": "diffulex-serve"})
"""Table of a config file -> the first-party package whose commands read it. Consulted only when no plugin has it."""

OWNERS: Mapping[str, str] = MappingProxyType(
    {name: package for package, names in _KEYS_OF_PACKAGES.items() for name in names}
)
"""Key name -> the first-party package that owns it. Consulted only when no selected plugin has the key."""
