"""The names that checkpoints of decoders usually give their tensors, for resolvers that do not say theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

MOST_LAYERS = 8
"""Of a small config.json; a resolver is asked for no more."""
MOST_EXPERTS = 8
"""Likewise."""

_KINDS = ("weight", "bias")
_ROOTS = ("", "model.", "transformer.", "model.transformer.", "model.model.", "model.language_model.")
_STACKS = ("layers", "blocks", "h")
_TOPS = (
    "embed", "embed_tokens", "tok_embeddings", "embeddings", "word_embeddings", "wte", "norm", "final_norm", "ln_f",
    "final_layernorm", "lm_head", "head", "output", "ff_out",
)  # fmt: skip
_ATTENTION = ("self_attn.", "attention.", "attn.", "")
_OF_ATTENTION = (
    *(f"{role}{end}" for role in "qkv" for end in ("_proj", "")), "wq", "wk", "wv", "wo", "o_proj", "out_proj", "out",
    "o", "attn_out", "dense", "qkv", "qkv_proj", "query_key_value", "query", "key", "value", "q_norm", "k_norm",
    "query_layernorm", "key_layernorm",
)  # fmt: skip
_MLP = ("mlp.", "feed_forward.", "ffn.", "")
_OF_MLP = (
    "gate_proj", "up_proj", "down_proj", "gate", "up", "down", "w1", "w2", "w3", "gate_up_proj", "ff_proj", "ff_out",
)  # fmt: skip
_NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
    "attn_norm", "ff_norm", "ffn_norm", "mlp_norm", "attention_norm", "norm1", "norm2", "ln_1", "ln_2",
)  # fmt: skip
_EXPERTS = tuple(f"experts.{{e}}.{leaf}" for leaf in ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"))


def usual_names(config: Mapping[str, Any], known: Callable[[str], bool]) -> Iterator[str]:
    """Names of weights and biases that a checkpoint with this config.json may have.

    Args:
        config: the config.json.
        known: whether a name leads anywhere; layers are gone through only under roots where one does in the first.
    """
    layers = range(1, min(MOST_LAYERS, _largest(config)))
    leaves = [
        *(path + leaf for path, leaf in product(_ATTENTION, _OF_ATTENTION)),
        *(path + leaf for path, leaf in product(_MLP, _OF_MLP)),
        *_NORMS,
        *(f"mlp.{leaf.format(e=expert)}" for leaf, expert in product(_EXPERTS, range(MOST_EXPERTS))),
    ]
    for root in _ROOTS:
        yield from (f"{root}{top}.{kind}" for top, kind in product(_TOPS, _KINDS))
        for stack in _STACKS:
            found = [leaf for leaf in leaves if known(f"{root}{stack}.0.{leaf}.weight")]
            for layer, leaf, kind in product((0, *layers), found, _KINDS):
                yield f"{root}{stack}.{layer}.{leaf}.{kind}"


def _largest(config: Mapping[str, Any]) -> int:
    """The number of layers, whatever config.json calls it; more than there are does no harm."""
    named = [value for key, value in config.items() if "layer" in key and type(value) is int and value > 0]
    return min(named, default=MOST_LAYERS)
