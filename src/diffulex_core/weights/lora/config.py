"""adapter_config.json as peft writes it: every key is honoured, known to change no answer, or refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs

from diffulex_core.weights.lora.targets import TargetRule

CONFIG = "adapter_config.json"

_REFUSED: Mapping[str, str] = MappingProxyType({
    "use_dora": "DoRA scales the weights as well; merge the adapter into the checkpoint with peft",
    "modules_to_save": "modules trained beside the adapter are not loaded; merge them into the checkpoint with peft",
    "target_parameters": "adapters over bare parameters are not supported; merge it into the checkpoint with peft",
    "fan_in_fan_out": "it is for weights that are stored transposed; set it to false if the base layers are plain ones",
    "lora_bias": "a bias of lora_B is not supported; merge the adapter into the checkpoint with peft",
    "trainable_token_indices": "trained token embeddings are not loaded; merge them into the checkpoint with peft",
    "layer_replication": "the checkpoint would need repeated layers; merge the adapter into a checkpoint with peft",
    "alora_invocation_tokens": "the adapter would start at certain tokens, which is not supported",
    "use_qalora": "QALoRA pools the inputs, which is not supported",
})  # fmt: skip
"""Keys that change what an adapter computes, when they are on, and why that cannot be served."""

_WITHOUT_EFFECT = frozenset({
    "auto_mapping", "inference_mode", "peft_version", "revision", "task_type", "lora_dropout", "megatron_core",
    "corda_config", "eva_config", "loftq_config", "lora_ga_config", "qalora_group_size",
})  # fmt: skip
"""Keys about training, or about an option that another key turns on."""

_HONOURED = frozenset({
    "peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights",
})  # fmt: skip

_INITIALISATIONS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base weights as they are; the others train against changed ones."""

Pattern = tuple[re.Pattern[str], float]


@attrs.frozen(kw_only=True)
class AdapterConfig:
    """What an adapter's configuration says.

    Attributes:
        rank, alpha: of layers that no pattern names.
        rslora: whether the scale is `alpha / sqrt(rank)` in place of `alpha / rank`.
        rank_pattern, alpha_pattern: values of layers whose path, or the end of it, matches; the first match counts.
        targets: which layers carry the adapter.
        base: name of the model it was trained over; empty when it does not say.
    """

    rank: int
    alpha: float
    rslora: bool = False
    rank_pattern: tuple[Pattern, ...] = ()
    alpha_pattern: tuple[Pattern, ...] = ()
    targets: TargetRule
    base: str = ""

    def rank_of(self, path: str) -> int:
        """Rank of a layer's two matrices."""
        return int(_first(self.rank_pattern, path, self.rank))

    def scale_of(self, path: str) -> float:
        """Factor on a layer's product `B A`."""
        rank, alpha = self.rank_of(path), _first(self.alpha_pattern, path, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def parse_adapter_config(content: Mapping[str, Any]) -> tuple[AdapterConfig | None, Sequence[str]]:
    """Read the parsed adapter_config.json.

    Returns:
        The configuration, None when its values cannot be used, and everything that is wrong, one sentence each. A
        configuration beside problems is good enough to look for more of them.
    """
    reader = _Reader(content)
    if content.get("peft_type") != "LORA":
        reader.reject("peft_type", "'LORA'; other kinds of adapters cannot be loaded")
        return None, reader.problems
    config = AdapterConfig(
        rank=int(reader.number("r", whole=True)),
        alpha=reader.number("lora_alpha"),
        rslora=reader.flag("use_rslora"),
        rank_pattern=reader.pattern("rank_pattern", whole=True),
        alpha_pattern=reader.pattern("alpha_pattern"),
        targets=TargetRule(
            modules=reader.names_or_pattern("target_modules") or None,
            exclude=reader.names_or_pattern("exclude_modules"),
            layers=reader.layers("layers_to_transform"),
            layers_pattern=reader.patterns("layers_pattern"),
        ),
        base=reader.text("base_model_name_or_path"),
    )
    readable = not reader.problems
    _refuse(content, reader)
    return config if readable else None, reader.problems


def _refuse(content: Mapping[str, Any], reader: _Reader) -> None:
    if content.get("bias", "none") != "none":
        reader.reject("bias", "'none'; trained biases are not loaded: merge the adapter into the checkpoint with peft")
    if content.get("init_lora_weights") not in _INITIALISATIONS:
        reader.reject(
            "init_lora_weights",
            "a start that leaves the base weights alone. Convert the adapter: save it from peft with"
            " path_initial_model_for_weight_conversion, or merge it into the checkpoint",
        )
    for key in sorted(content.keys() - _HONOURED - _WITHOUT_EFFECT):
        if content[key] and key in _REFUSED:
            reader.problems.append(f"{CONFIG}: {key} is {content[key]!r}, but {_REFUSED[key]}.")
        elif content[key]:
            reader.problems.append(
                f"{CONFIG}: {key} is {content[key]!r}, a key that is not known here and may change what the adapter"
                f" computes. Merge the adapter into the checkpoint with peft, or remove the key if it has no effect."
            )


def _first(pattern: Sequence[Pattern], path: str, otherwise: float) -> float:
    return next((value for regex, value in pattern if regex.fullmatch(path)), otherwise)


@attrs.define
class _Reader:
    """Typed values; one that cannot be used is noted and stands in as something harmless."""

    content: Mapping[str, Any]
    problems: list[str] = attrs.field(factory=list, init=False)

    def reject(self, key: str, wanted: str) -> None:
        state = f"is {self.content[key]!r}" if key in self.content else "is missing"
        self.problems.append(f"{CONFIG}: {key} {state}; it must be {wanted}.")

    def number(self, key: str, *, whole: bool = False) -> float:
        value: Any = self.content.get(key)
        if not _is_number(value, whole=whole):
            self.reject(key, _kind_of_number(whole))
            return 1
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.content.get(key)
        if not isinstance(value, bool | None):
            self.reject(key, "true or false")
        return value is True

    def text(self, key: str) -> str:
        value = self.content.get(key)
        if not isinstance(value, str | None):
            self.reject(key, "text")
        return value if isinstance(value, str) else ""

    def pattern(self, key: str, *, whole: bool = False) -> tuple[Pattern, ...]:
        value = self.content.get(key) or {}
        if not isinstance(value, Mapping) or not all(_is_number(each, whole=whole) for each in value.values()):
            self.reject(key, f"an object that gives {_kind_of_number(whole)} for each name")
            return ()
        # A name stands for the whole path or for its last components.
        return tuple(
            (re.compile(rf"(?:.*\.)?(?:{name})"), float(each))
            for name, each in value.items()
            if self._compiles(key, name)
        )

    def names_or_pattern(self, key: str) -> tuple[str, ...] | str:
        value = self.content.get(key)
        if isinstance(value, str):
            return value if self._compiles(key, value) else ()
        return self._listed(key, value, _is_text, "a list of names or a regular expression")

    def patterns(self, key: str) -> tuple[str, ...]:
        value = self.content.get(key)
        names = self._listed(key, [value] if isinstance(value, str) else value, _is_text, "a name or a list of names")
        return tuple(name for name in names if name and self._compiles(key, name))

    def layers(self, key: str) -> tuple[int, ...]:
        value = self.content.get(key)
        return self._listed(
            key, [value] if _is_layer(value) else value, _is_layer, "a layer's number or a list of them"
        )

    def _listed(self, key: str, value: Any, fits: Callable[[object], bool], wanted: str) -> tuple[Any, ...]:
        if value is None:
            return ()
        if not isinstance(value, list) or not all(map(fits, value)):
            self.reject(key, wanted)
            return ()
        return tuple(value)

    def _compiles(self, key: str, text: str) -> bool:
        try:
            re.compile(text)
        except re.error as error:
            self.problems.append(f"{CONFIG}: {key} holds {text!r}, which is no regular expression ({error}).")
            return False
        return True


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_layer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object, *, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return value >= 1 if whole else math.isfinite(value)


def _kind_of_number(whole: bool) -> str:
    return "a whole number of at least 1" if whole else "a number"
