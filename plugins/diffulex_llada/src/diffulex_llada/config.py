"""Strict reading of LLaDA's OLMo-style config.json; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs

from diffulex_core.errors import ConfigError
from diffulex_core.layers import DecoderSpec

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
    reader = _Reader(config)
    problems = reader.problems
    problems += _unsupported(config)
    hidden, layers, heads = reader.size("d_model"), reader.size("n_layers"), reader.size("n_heads")
    vocab_size = reader.size("vocab_size")
    rows = reader.size("embedding_size", default=vocab_size)
    kv_heads = reader.size("n_kv_heads", default=1 if reader.flag("multi_query_attention") else heads)
    ffn = reader.size("mlp_hidden_size", default=int(reader.number("mlp_ratio", default=4) * hidden))
    theta, eps = reader.number("rope_theta"), reader.number("rms_norm_eps")
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


def _unsupported(config: Mapping[str, object]) -> list[str]:
    problems = []
    for key, only in _REQUIRED_VALUES.items():
        if key not in config:
            problems.append(f"{key} is missing; the one supported value is {only!r}.")
        elif config[key] != only:
            problems.append(f"{key} is {config[key]!r}; the one supported value is {only!r}.")
    for key, only in _OPTIONAL_VALUES.items():
        if config.get(key) is not None and config[key] != only:
            problems.append(f"{key} is {config[key]!r}; the one supported value is {only!r}.")
    for key in ("rope_scaling", "rope_parameters"):
        scaling = config.get(key)
        kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, Mapping) else scaling
        if kind not in (None, "default"):
            problems.append(f"{key} asks for {kind!r}; RoPE scaling is not supported for this family.")
    return problems


@attrs.define
class _Reader:
    """Reads typed values; a missing or wrong one is noted and stands in as 1 (or False), so that reading goes on."""

    config: Mapping[str, object]
    problems: list[str] = attrs.field(factory=list, init=False)
    wrong: set[str] = attrs.field(factory=set, init=False)

    def size(self, key: str, *, default: int | None = None) -> int:
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self._reject(key, "a whole number of at least 1")
            return 1
        return value

    def number(self, key: str, *, default: float | None = None) -> float:
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            self._reject(key, "a positive number")
            return 1.0
        return float(value)

    def flag(self, key: str, *, default: bool = False, required: bool = False) -> bool:
        value = self.config.get(key)
        if value is None and not required:
            return default
        if not isinstance(value, bool):
            self._reject(key, "true or false")
            return default
        return value

    def _reject(self, key: str, wanted: str) -> None:
        state = f"is {self.config[key]!r}" if key in self.config else "is missing"
        self.wrong.add(key)
        self.problems.append(f"{key} {state}; config.json must give {wanted}.")
