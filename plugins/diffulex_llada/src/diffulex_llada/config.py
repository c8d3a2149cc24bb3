"""Strict reading of LLaDA's OLMo-style config.json; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from diffulex_core.config_json import MOST_LAYERS, ConfigReader
from diffulex_core.layers import DecoderSpec
from diffulex_core.plugin import ConfigError

TINY: Mapping[str, object] = MappingProxyType({
    "architectures": ["LLaDAModelLM"], "model_type": "llada", "vocab_size": 97, "embedding_size": 104, "d_model": 32,
    "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 48, "max_sequence_length": 256, "rope": True,
    "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "layer_norm_type": "rms", "block_type": "llama",
    "activation_type": "silu", "weight_tying": False, "mask_token_id": 95, "eos_token_id": 96, "pad_token_id": 96,
})  # fmt: skip
"""A small configuration for tests."""

_REQUIRED_VALUES: Mapping[str, object] = MappingProxyType({
    "rope": True, "layer_norm_type": "rms", "block_type": "llama", "activation_type": "silu",
})  # fmt: skip
"""Keys whose default in the published configuration class is another value, so that a missing key is a problem too."""

_OPTIONAL_VALUES: Mapping[str, object] = MappingProxyType({
    "alibi": False, "attention_layer_norm": False, "scale_logits": False, "input_emb_norm": False,
    "layer_norm_with_affine": True, "block_group_size": 1,
})  # fmt: skip
"""Keys that may be left out or null, but must not have another value."""


def check_config(config: Mapping[str, object]) -> list[str]:
    """Everything in a config.json that this family cannot run, one sentence each."""
    return _read(config)[1]


def decoder_spec(config: Mapping[str, object]) -> DecoderSpec:
    """The decoder that a config.json describes.

    Raises:
        ConfigError: listing all problems.
    """
    spec, problems = _read(config)
    if spec is None:
        raise ConfigError(problems)
    return spec


def _read(config: Mapping[str, object]) -> tuple[DecoderSpec | None, list[str]]:
    reader = ConfigReader(config)
    problems = reader.problems
    reader.unscaled_rope()
    for key, only in _REQUIRED_VALUES.items():
        reader.only(key, only, required=True)
    for key, only in _OPTIONAL_VALUES.items():
        reader.only(key, only)
    hidden, layers, heads = reader.size("d_model"), reader.size("n_layers", maximum=MOST_LAYERS), reader.size("n_heads")
    vocab_size = reader.size("vocab_size")
    rows = reader.size("embedding_size", default=vocab_size)
    kv_heads = reader.size("n_kv_heads", default=1 if reader.flag("multi_query_attention") else heads)
    ffn = reader.size("mlp_hidden_size", default=int(reader.number("mlp_ratio", default=4) * hidden))
    theta, eps = reader.rope_number("rope_theta"), reader.number("rms_norm_eps")
    bias, tied = reader.flag("include_bias"), reader.flag("weight_tying", required=True)
    qkv_bias = reader.flag("include_qkv_bias") or bias
    if reader.flag("bias_for_layer_norm", default=bias):
        problems.append("The norms would have a bias, which is not supported: set bias_for_layer_norm to false.")
    if "n_kv_heads" not in reader.wrong and reader.flag("multi_query_attention") and kv_heads != 1:
        problems.append(f"multi_query_attention contradicts n_kv_heads={kv_heads}: remove one of the two.")
    if not reader.wrong & {"embedding_size", "vocab_size"} and rows < vocab_size:
        problems.append(f"embedding_size is {rows}, less than vocab_size {vocab_size}.")
    if not reader.wrong & {"d_model", "n_heads"} and hidden % heads:
        problems.append(f"d_model {hidden} is not a multiple of n_heads {heads}.")
    if problems:
        return None, problems
    try:
        spec = DecoderSpec(
            vocab_size=rows, hidden_size=hidden, num_layers=layers, num_heads=heads, num_kv_heads=kv_heads,
            ffn_size=ffn, rope_theta=theta, norm="rms", norm_eps=eps, activation="silu", qkv_bias=qkv_bias,
            out_bias=bias, mlp_bias=bias, head_bias=bias and not tied, tie_embeddings=tied,
        )  # fmt: skip
    except ConfigError as error:
        return None, [*error.problems]
    return spec, []
