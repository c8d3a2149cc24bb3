"""Values that follow from the checkpoint and the tokenizer: lengths, block size, special tokens, sampling defaults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from diffulex_core.config.keys import Origin
from diffulex_core.config.settle import Report, Setting
from diffulex_core.descriptors import Capability, DecodingStrategy, ModelFamily
from diffulex_core.errors import InvalidSamplingParams
from diffulex_core.sampling_params import SamplingParams

BLOCK_SIZE_KEYS = ("block_size", "bd_size", "canvas_length")
LENGTH_KEYS = ("max_position_embeddings", "max_sequence_length")
VOCABULARY_KEYS = ("vocab_size", "embedding_size")
_SAMPLING = {"temperature": "temperature", "max_tokens": "max_tokens", "max_new_tokens": "max_tokens", "top_p": "top_p"}

CONFIG_JSON = Origin(source="checkpoint", detail="config.json")
GENERATION_CONFIG = Origin(source="checkpoint", detail="generation_config.json")
TOKENIZER = Origin(source="tokenizer")


def _as_tuple(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(ids)


@attrs.frozen(kw_only=True)
class Checkpoint:
    """What is known of a checkpoint before anything is loaded.

    Attributes:
        config: parsed config.json, None when there is no checkpoint.
        generation: parsed generation_config.json.
        tokenizer_mask_id: the tokenizer's mask token, None when it has none.
        tokenizer_eos_ids: the tokenizer's end tokens.
        tokenizer_tokens: ids of the tokenizer's added tokens, by their text.
    """

    config: Mapping[str, Any] | None = None
    generation: Mapping[str, Any] = attrs.field(factory=dict)
    tokenizer_mask_id: int | None = None
    tokenizer_eos_ids: tuple[int, ...] = attrs.field(default=(), converter=_as_tuple)
    tokenizer_tokens: Mapping[str, int] = attrs.field(factory=dict)

    def look_up(self, *names: str) -> tuple[str, Any] | None:
        """The first of these entries of config.json that is set, at the top and then in text_config."""
        config = self.config or {}
        for level in (config, config.get("text_config")):
            for name in names:
                if isinstance(level, Mapping) and level.get(name) is not None:
                    return name, level[name]
        return None


def derive(
    settings: dict[str, Setting],
    checkpoint: Checkpoint,
    family: ModelFamily | None,
    strategy: DecodingStrategy | None,
    report: Report,
) -> None:
    """Fill in what the checkpoint decides, in place."""
    if "max_model_len" not in report.unusable and checkpoint.config is not None:
        _limit_length(settings, checkpoint, report)
    if not report.unusable.intersection(("block_size", "buffer_size")):
        parts = settings["buffer_size"].value if strategy is not None and strategy.sub_blocks else 1
        _find_block_size(settings, checkpoint, parts, report)
        _widen_pages(settings)
    if "mask_token_id" not in report.unusable:
        _find_mask(settings, checkpoint, family, report)
        _check_mask(settings, checkpoint, family, report)
    if "eos_token_ids" not in report.unusable:
        _find_eos(settings, checkpoint, family)
    _check_vocabulary(settings, checkpoint, report)
    _check_quantisation(checkpoint, report)
    if not report.unusable.intersection(("device", "device_ids")):
        _name_device(settings)


def sampling_defaults(generation: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """The arguments of `SamplingParams` that generation_config.json recommends."""
    found = {target: generation[name] for name, target in _SAMPLING.items() if generation.get(name) is not None}
    # transformers writes top_k 0 for "all".
    if generation.get("top_k"):
        found["top_k"] = generation["top_k"]
    # transformers ignores a temperature beside do_sample=false.
    if generation.get("do_sample") is False:
        found["temperature"] = 0.0
    try:
        SamplingParams(**found)
    except InvalidSamplingParams as error:
        report.problems.append(f"The checkpoint's generation_config.json cannot be used: {error} Correct the file.")
        return {}
    return found


def _limit_length(settings: dict[str, Setting], checkpoint: Checkpoint, report: Report) -> None:
    setting = settings["max_model_len"]
    found = checkpoint.look_up(*LENGTH_KEYS)
    if found is None:
        if not setting.origin.by_user:
            report.problems.append(
                setting.problem(f"config.json names no maximum length ({' or '.join(LENGTH_KEYS)}); give max_model_len")
            )
        return
    name, limit = found
    if not _is_id(limit) or limit < 1:
        report.problems.append(f"config.json has {name} {limit!r}, which is no length; correct the file.")
    elif setting.value > limit and setting.origin.by_user:
        report.problems.append(setting.problem(f"the checkpoint's {name} is {limit}; use at most {limit}"))
    elif setting.value > limit:
        origin = attrs.evolve(CONFIG_JSON, detail=f"config.json {name}")
        settings["max_model_len"] = attrs.evolve(setting, value=limit, origin=origin)


def _find_block_size(settings: dict[str, Setting], checkpoint: Checkpoint, parts: int, report: Report) -> None:
    """The block size of config.json, divided by the number of sub-blocks that block_size is one of."""
    setting, found = settings["block_size"], checkpoint.look_up(*BLOCK_SIZE_KEYS)
    if found is None:
        return
    name, size = found
    chosen = setting.origin.by_user or setting.origin.source == "checkpoint"
    if not isinstance(size, int) or isinstance(size, bool):
        if not chosen:
            report.problems.append(f"config.json has {name} {size!r}, which is no whole number; correct the file.")
        return
    if not chosen and size % parts == 0:
        setting = settings["block_size"] = attrs.evolve(setting, value=size // parts, origin=CONFIG_JSON)
    if parts > 1 and setting.value * parts != size:
        report.warn(
            f"block_size {setting.value} x buffer_size {parts} make blocks of {setting.value * parts} tokens, but the "
            f"checkpoint was trained with blocks of {size} ({name} in config.json)."
        )


def _widen_pages(settings: dict[str, Setting]) -> None:
    """A page that nobody chose is as large as a block that would not fit into it."""
    page, block = settings["page_size"], settings["block_size"]
    if not page.origin.by_user and page.value < block.value:
        settings["page_size"] = attrs.evolve(page, value=block.value, origin=block.origin)


def _find_mask(
    settings: dict[str, Setting], checkpoint: Checkpoint, family: ModelFamily | None, report: Report
) -> None:
    setting = settings["mask_token_id"]
    if family is not None and Capability.MASK_TOKEN not in family.provides:
        # Its tokenizer may name one all the same: Gemma's has an id for it that the network was never trained on.
        if setting.value is not None:
            if setting.origin.by_user:
                report.warn(
                    f"{setting.spec.name} is {setting.value} ({setting.origin}), but the model family '{family.name}' "
                    "has no mask token; it is ignored."
                )
            origin = Origin(source="family", detail=family.name)
            settings["mask_token_id"] = attrs.evolve(setting, value=None, origin=origin)
        return
    if setting.value is not None and setting.origin.by_user:
        return
    found = checkpoint.look_up("mask_token_id")
    for value, origin in (
        (found and found[1], CONFIG_JSON),
        (checkpoint.generation.get("mask_token_id"), GENERATION_CONFIG),
        (checkpoint.tokenizer_mask_id, TOKENIZER),
        (checkpoint.tokenizer_tokens.get(family.mask_token or "") if family else None, TOKENIZER),
        (setting.value, setting.origin),
    ):
        if value is None:
            continue
        if not _is_id(value):
            report.problems.append(
                f"{origin.detail} has mask_token_id {value!r}, which is no token id; correct the file."
            )
        else:
            settings["mask_token_id"] = attrs.evolve(setting, value=value, origin=origin)
        return
    if family is not None and Capability.MASK_TOKEN in family.provides and checkpoint.config is not None:
        report.problems.append(
            setting.problem(
                "no config.json, generation_config.json or tokenizer names a mask token; give mask_token_id"
            )
        )


def _check_mask(
    settings: Mapping[str, Setting], checkpoint: Checkpoint, family: ModelFamily | None, report: Report
) -> None:
    """Compare the id with what the tokenizer says that the family's mask token is."""
    setting = settings["mask_token_id"]
    if family is None or family.mask_token is None or setting.value is None or not checkpoint.tokenizer_tokens:
        return
    named = checkpoint.tokenizer_tokens.get(family.mask_token)
    if named == setting.value or (named is None and setting.origin.source != "family"):
        return
    if named is None:
        text = f"the tokenizer has no {family.mask_token!r}; give mask_token_id, or the tokenizer of this checkpoint"
    else:
        text = f"the tokenizer's {family.mask_token!r} is {named}; correct the one that is wrong"
    if setting.origin.by_user:
        report.warn(setting.problem(f"{text}. {setting.value} is used"))
    else:
        report.problems.append(setting.problem(text))


def _find_eos(settings: dict[str, Setting], checkpoint: Checkpoint, family: ModelFamily | None) -> None:
    setting = settings["eos_token_ids"]
    if setting.origin.by_user:
        settings["eos_token_ids"] = attrs.evolve(setting, value=tuple(sorted(set(setting.value))))
        return
    found = checkpoint.look_up("eos_token_id")
    tokens = checkpoint.tokenizer_tokens
    stops = {tokens[text] for text in (family.stop_tokens if family else ()) if text in tokens}
    sources = [
        (set(_ids(found and found[1])), CONFIG_JSON),
        (set(_ids(checkpoint.generation.get("eos_token_id"))), GENERATION_CONFIG),
        ({*checkpoint.tokenizer_eos_ids, *stops}, TOKENIZER),
    ]
    named = [(ids, origin) for ids, origin in sources if ids]
    if named:
        value = tuple(sorted(set().union(*(ids for ids, _ in named))))
        origin = next((origin for ids, origin in named if len(ids) == len(value)), None)
        joined = Origin(source="checkpoint", detail=", ".join(one.detail or one.source for _, one in named))
        settings["eos_token_ids"] = attrs.evolve(setting, value=value, origin=origin or joined)


def _check_vocabulary(settings: Mapping[str, Setting], checkpoint: Checkpoint, report: Report) -> None:
    sizes = [found[1] for name in VOCABULARY_KEYS if (found := checkpoint.look_up(name)) and _is_id(found[1])]
    if not sizes:
        return
    for name in ("mask_token_id", "eos_token_ids"):
        setting = settings[name]
        ids = setting.value if isinstance(setting.value, tuple) else (setting.value,)
        if name not in report.unusable and any(_is_id(token) and token >= max(sizes) for token in ids):
            report.problems.append(
                setting.problem(f"the vocabulary of config.json has {max(sizes)} tokens; use ids below that")
            )


def _check_quantisation(checkpoint: Checkpoint, report: Report) -> None:
    found = checkpoint.look_up("quantization_config", "compression_config")
    if found is not None and found[1]:
        name, value = found
        method = value.get("quant_method") if isinstance(value, Mapping) else value
        report.problems.append(
            f"config.json has {name} ({method}), but quantised weights cannot be loaded; use the checkpoint in bf16, "
            "fp16 or fp32."
        )


def _name_device(settings: dict[str, Setting]) -> None:
    device, ids = settings["device"], settings["device_ids"]
    if ids.value and device.value in ("auto", "cuda"):
        settings["device"] = attrs.evolve(device, value=f"cuda:{ids.value[0]}", origin=ids.origin)


def _ids(value: object) -> Iterator[int]:
    entries: Iterable[object] = value if isinstance(value, list) else [value]
    return (entry for entry in entries if _is_id(entry) and isinstance(entry, int))


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
