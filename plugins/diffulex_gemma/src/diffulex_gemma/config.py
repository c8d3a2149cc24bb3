"""Strict reading of DiffusionGemma's nested config.json; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diffulex_core.config_json import MOST_LAYERS, ConfigReader
from diffulex_core.plugin import ConfigError
from diffulex_gemma.spec import GemmaSpec, LayerKind

TINY: Mapping[str, object] = MappingProxyType({
    "architectures": ["DiffusionGemmaForBlockDiffusion"], "model_type": "diffusion_gemma", "canvas_length": 4,
    "tie_word_embeddings": True, "text_config": {
        "model_type": "diffusion_gemma_text", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 24,
        "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "num_global_key_value_heads": 1,
        "head_dim": 8, "global_head_dim": 16, "sliding_window": 5, "num_experts": 4, "top_k_experts": 2,
        "moe_intermediate_size": 12, "max_position_embeddings": 256, "use_bidirectional_attention": "vision",
        "eos_token_id": [1, 96], "bos_token_id": 2, "pad_token_id": 0,
    },
})  # fmt: skip
"""A small configuration for tests."""

SLIDING, FULL = "sliding_attention", "full_attention"
GLOBAL_KEYS: Mapping[str, str] = MappingProxyType(
    {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
)
"""What full layers may have of their own: key of `per_layer_config`, and its older spelling."""

_ROPE: Mapping[str, Mapping[str, object]] = MappingProxyType({
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
})  # fmt: skip
"""The published class's default of rope_parameters."""

_ONLY: Mapping[str, object] = MappingProxyType(
    {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "tie_word_embeddings": True}
)
"""Keys of text_config that may be left out or null, but must not have another value."""


def check_config(config: Mapping[str, object]) -> list[str]:
    """Everything in a config.json that this family cannot run, one sentence each."""
    return _read(config)[1]


def gemma_spec(config: Mapping[str, object]) -> GemmaSpec:
    """The network that a config.json describes.

    Keys that it leaves out have the defaults that the published configuration class documents; it names none for the
    number and the width of the experts.

    Raises:
        ConfigError: listing all problems.
    """
    spec, problems = _read(config)
    if spec is None:
        raise ConfigError(problems)
    return spec


def _read(config: Mapping[str, object]) -> tuple[GemmaSpec | None, list[str]]:
    top = ConfigReader(config)
    top.only("tie_word_embeddings", True)
    canvas_length = top.size("canvas_length", default=256)
    section = config.get("text_config")
    if not isinstance(section, Mapping):
        top.reject("text_config", "a table")
        return None, top.problems
    text = ConfigReader(section)
    for key, only in _ONLY.items():
        text.only(key, only)
    if section.get("use_bidirectional_attention") not in (None, "vision"):
        text.problems.append(
            f"use_bidirectional_attention is {section['use_bidirectional_attention']!r}; supported are null and"
            " 'vision', both of which read text causally."
        )
    num_layers = text.size("num_hidden_layers", default=30, maximum=MOST_LAYERS)
    heads = text.size("num_attention_heads", default=8)
    hidden, ffn = text.size("hidden_size", default=2304), text.size("intermediate_size", default=9216)
    vocab_size, window = text.size("vocab_size", default=262144), text.size("sliding_window", default=512)
    eps, softcap = text.number("rms_norm_eps", default=1e-6), text.number("final_logit_softcapping", default=30.0)
    experts, chosen = text.size("num_experts"), text.size("top_k_experts")
    expert_size = text.size("moe_intermediate_size")
    if not text.wrong & {"num_experts", "top_k_experts"} and chosen > experts:
        text.problems.append(f"top_k_experts is {chosen}, more than num_experts {experts}.")
    full_layers = _full_layers(text, num_layers)
    sizes = _heads(text, full_layers)
    kinds = [_kind(text, name, sizes, heads, window if name == SLIDING else None) for name in (SLIDING, FULL)]
    problems = top.problems + [f"text_config: {problem}" for problem in text.problems]
    if problems:
        return None, problems
    return GemmaSpec(
        vocab_size=vocab_size, hidden_size=hidden, ffn_size=ffn, num_heads=heads, norm_eps=eps, softcap=softcap,
        num_experts=experts, experts_per_token=chosen, expert_size=expert_size, sliding=kinds[0], full=kinds[1],
        full_layers=full_layers, canvas_length=canvas_length,
    ), []  # fmt: skip


def _full_layers(text: ConfigReader, num_layers: int) -> tuple[bool, ...]:
    """For each layer whether it is a full one: every sixth where nothing is said, and always the last."""
    given = text.config.get("layer_types")
    if given is None:
        return tuple(layer % 6 == 5 or layer == num_layers - 1 for layer in range(num_layers))
    if not isinstance(given, list) or not all(name in (SLIDING, FULL) for name in given):
        text.reject("layer_types", f"a list of {SLIDING!r} and {FULL!r}")
        return (True,) * num_layers
    if "num_hidden_layers" not in text.wrong and len(given) != num_layers:
        text.problems.append(f"layer_types names {len(given)} layers, num_hidden_layers is {num_layers}.")
        return (True,) * num_layers
    return (*(name == FULL for name in given[:-1]), True)


def _heads(text: ConfigReader, full_layers: tuple[bool, ...]) -> Mapping[tuple[str, str], int]:
    """(layer type, key) -> head_dim or num_key_value_heads of that type's layers.

    Both spellings are read; where both are there, they must agree.
    """
    base = {
        "head_dim": text.size("head_dim", default=256),
        "num_key_value_heads": text.size("num_key_value_heads", default=4),
    }
    per_layer = text.config.get("per_layer_config")
    if per_layer is None:
        of_full = {
            "head_dim": text.size("global_head_dim", default=512),
            "num_key_value_heads": text.size("num_global_key_value_heads", default=base["num_key_value_heads"]),
        }
        return {(kind, key): value for kind, by in ((SLIDING, base), (FULL, of_full)) for key, value in by.items()}
    overrides = _overrides(text, per_layer, len(full_layers))
    found = {}
    for key, value in base.items():
        for kind, full in ((SLIDING, False), (FULL, True)):
            layers = [layer for layer, is_full in enumerate(full_layers) if is_full == full]
            values = {overrides.get(layer, {}).get(key, value) for layer in layers}
            found[kind, key] = min(values, default=value)
            if len(values) > 1:
                text.problems.append(
                    f"per_layer_config gives the {kind} layers different {key} ({', '.join(map(str, sorted(values)))});"
                    " all layers of a type must agree."
                )
        older = text.config.get(GLOBAL_KEYS[key])
        if older not in (None, found[FULL, key]):
            text.problems.append(
                f"{GLOBAL_KEYS[key]} is {older!r}, but per_layer_config says {found[FULL, key]}: remove one."
            )
    return found


def _overrides(text: ConfigReader, given: object, num_layers: int) -> Mapping[int, Mapping[str, int]]:
    """What per_layer_config says for each layer that it names."""
    if not isinstance(given, Mapping) or not all(isinstance(entry, Mapping) for entry in given.values()):
        text.reject("per_layer_config", "a table with a table for each layer")
        return {}
    found: dict[int, Mapping[str, int]] = {}
    for name, entry in given.items():
        where = f"per_layer_config, layer {name!r}"
        if not str(name).isdecimal() or int(name) >= num_layers:
            text.problems.append(f"{where}: there is no such layer among {num_layers}.")
            continue
        reader = ConfigReader(entry)
        found[int(name)] = {key: reader.size(key) for key in GLOBAL_KEYS if entry.get(key) is not None}
        strange = [f"{key} cannot differ from layer to layer." for key in entry if key not in GLOBAL_KEYS]
        text.problems += [f"{where}: {problem}" for problem in reader.problems + strange]
    return found


def _kind(
    text: ConfigReader, name: str, sizes: Mapping[tuple[str, str], int], num_heads: int, window: int | None
) -> LayerKind:
    head_dim, kv_heads = sizes[name, "head_dim"], sizes[name, "num_key_value_heads"]
    if num_heads % kv_heads and "num_attention_heads" not in text.wrong:
        text.problems.append(f"{num_heads} query heads cannot share {kv_heads} key/value heads evenly ({name}).")
    if head_dim % 2 and not text.wrong & {"head_dim", "global_head_dim"}:
        text.problems.append(f"RoPE needs heads of even width, but {name} layers have {head_dim}.")
    theta, share = _rope(text, name)
    return LayerKind(
        window=window, num_kv_heads=kv_heads, head_dim=head_dim, rope_theta=theta,
        rope_pairs=int(share * head_dim // 2), own_values=name == SLIDING,
    )  # fmt: skip


def _rope(text: ConfigReader, name: str) -> tuple[float, float]:
    """theta and the rotated share of a head, of the layers of one type."""
    given = text.config.get("rope_parameters")
    table: Any = _ROPE if given is None else given
    entry = table.get(name) if isinstance(table, Mapping) else None
    if not isinstance(entry, Mapping):
        text.problems.append(f"rope_parameters must hold a table for {name}.")
        return 1.0, 1.0
    reader = ConfigReader(entry)
    kind, share = entry.get("rope_type"), 1.0
    if kind == "proportional":
        share = reader.number("partial_rotary_factor")
        if share > 1:
            reader.reject("partial_rotary_factor", "a number of at most 1")
    elif kind == "default":
        reader.only("partial_rotary_factor", 1.0)
    else:
        reader.problems.append(f"rope_type is {kind!r}; supported are 'default' and 'proportional'.")
    reader.only("factor", 1.0)
    theta = reader.number("rope_theta")
    text.problems += [f"rope_parameters of {name}: {problem}" for problem in reader.problems]
    return theta, share
