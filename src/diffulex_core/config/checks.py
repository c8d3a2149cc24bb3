"""The rules that values must keep: bounds of single keys, machinery that exists, and how keys fit together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from diffulex_core.config.keys import KeyInfo
from diffulex_core.config.schema import KeySpec
from diffulex_core.config.settle import Report, Setting

Settings = Mapping[str, Setting]


def check_values(settings: Settings, report: Report) -> None:
    """Bounds, choices and machinery, key by key."""
    for setting in settings.values():
        if setting.spec.name in report.unusable:
            continue
        fix = _out_of_bounds(setting)
        if fix is not None:
            report.problems.append(setting.problem(fix))
            report.unusable.add(setting.spec.name)
        elif not setting.spec.info.built:
            _check_built(setting, report)


def check_together(settings: Settings, unread: frozenset[str], report: Report) -> None:
    """The rules between keys; a rule is left out when one of its keys is unusable.

    Args:
        unread: keys that the strategy does not read.
    """
    for rule, keys in (
        (_pages_hold_blocks, ("block_size", "page_size")),
        (_pages_are_positive, ("num_pages",)),
        *(
            [(_budget_holds_a_window, ("max_num_batched_tokens", "block_size", "buffer_size"))]
            if "buffer_size" not in unread
            else []
        ),
        (profiler_has_a_place, ("profiler_config.profiler", "profiler_config.torch_profiler_dir")),
        (_adapter_has_a_place, ("use_lora", "lora_path")),
        (_pool_is_odd, ("sparse.pool_kernel",)),
        (_delay_is_within_a_block, ("sparse.delay_step", "sparse.default_block_len")),
        (_devices_suffice, ("device", "device_ids", "tensor_parallel_size", "data_parallel_size")),
    ):
        if not report.unusable.intersection(keys):
            report.problems += rule(settings)
    if not settings["auto_max_nfe"].value:
        for name in ("auto_max_nfe_warmup_steps", "auto_max_nfe_tpf_floor"):
            if settings[name].origin.by_user:
                report.warn(f"{name} ({settings[name].origin}) has no effect while auto_max_nfe is off; turn it on.")
    if not settings["sparse.enabled"].value:
        for name, setting in settings.items():
            # A whole SparseConfig, passed to be turned off, sets all of them.
            chosen = setting.origin.by_user and setting.value != setting.spec.default
            if name.startswith("sparse.") and name != "sparse.enabled" and chosen:
                report.warn(f"{name} ({setting.origin}) has no effect while sparse.enabled is off; turn it on.")
    report.warnings += [text for text in _without_effect(settings) if text not in report.warnings]
    if not settings["use_lora"].value:
        # A path without a word about use_lora is a problem, see _adapter_has_a_place.
        for name in ("lora_path", "pre_merge_lora") if settings["use_lora"].origin.by_user else ("pre_merge_lora",):
            if settings[name].value and settings[name].origin.by_user:
                report.warn(f"{name} ({settings[name].origin}) has no effect while use_lora is off; turn it on.")


def _out_of_bounds(setting: Setting) -> str | None:
    spec, value = setting.spec, setting.value
    if value is None:
        return None
    if isinstance(value, tuple):
        return next((f"for each entry, {fix}" for part in value if (fix := _violated(spec, part)) is not None), None)
    return _violated(spec, value)


def _violated(spec: KeySpec, value: object) -> str | None:
    info = spec.info
    if info.choices and value not in info.choices:
        named = (f"{choice} ({spec.added[choice]})" if choice in spec.added else str(choice) for choice in info.choices)
        return f"choose one of {', '.join(named)}"
    if isinstance(value, (int, float)) and not _within(info, value):
        return f"give a number {_range(info)}"
    if info.pattern is not None and isinstance(value, str) and re.fullmatch(info.pattern, value) is None:
        return f"give {info.form or info.pattern}"
    return None


def _within(info: KeyInfo, value: float) -> bool:
    # Written so that NaN, which compares as false, is outside every bound.
    return (
        (info.minimum is None or value >= info.minimum)
        and (info.maximum is None or value <= info.maximum)
        and (info.above is None or value > info.above)
    )


def _range(info: KeyInfo) -> str:
    parts = [
        f"of at least {info.minimum:.12g}" if info.minimum is not None else "",
        f"above {info.above:.12g}" if info.above is not None else "",
        f"of at most {info.maximum:.12g}" if info.maximum is not None else "",
    ]
    return " and ".join(part for part in parts if part)


def _check_built(setting: Setting, report: Report) -> None:
    info, spec, value = setting.spec.info, setting.spec, setting.value
    if value in info.honoured:
        return
    usable = info.honoured or (spec.default,)
    if value != spec.default:
        wanted = " or ".join(repr(choice) for choice in usable)
        report.problems.append(setting.problem(f"{info.why or 'this version cannot do that yet'}; use {wanted}"))
    elif setting.origin.by_user and info.honoured:
        report.warn(
            f"{spec.name} is {value!r} ({setting.origin}), but this version has nothing that it would switch on."
        )


_STATIC_NEEDS = (
    ("enable_prefill_cudagraph", "prefill_cudagraph_max_len", True, "is 0; say how many rows"),
    ("prefill_cudagraph_max_len", "enable_prefill_cudagraph", True, "is off; turn it on"),
    ("enable_prefill_cudagraph", "enable_full_static_runner", True, "is off; turn it on"),
    ("enable_prefill_cudagraph", "enforce_eager", False, "is on; turn it off"),
    ("enable_cudagraph_torch_compile", "enable_torch_compile", True, "is off; turn it on"),
    ("enable_cudagraph_torch_compile", "enable_full_static_runner", True, "is off; turn it on"),
    ("enable_cudagraph_torch_compile", "enforce_eager", False, "is on; turn it off"),
)
"""Key, what it needs, whether that must be set, and how to say that it is not."""


def _without_effect(settings: Settings) -> Iterator[str]:
    """What was asked of static steps, and another key stands in the way of."""
    for name, other, needed, fix in _STATIC_NEEDS:
        asked = settings[name].value and settings[name].origin.by_user
        if asked and bool(settings[other].value) is not needed:
            yield f"{name} ({settings[name].origin}) has no effect while {other} {fix}."


def _pages_hold_blocks(settings: Settings) -> Iterator[str]:
    page, block = settings["page_size"], settings["block_size"]
    if block.value > page.value:
        yield page.problem(
            f"a page cannot be smaller than a block; use a page_size of at least {block.value}, "
            f"or a block_size of at most {page.value}"
        )
    elif page.value % block.value:
        yield page.problem(f"a page holds whole blocks; use a multiple of block_size {block.value}")


def _pages_are_positive(settings: Settings) -> Iterator[str]:
    if settings["num_pages"].value == 0:
        yield settings["num_pages"].problem("give the number of pages, or -1 to derive it from the memory")


def _budget_holds_a_window(settings: Settings) -> Iterator[str]:
    budget, block, buffer = (settings[name] for name in ("max_num_batched_tokens", "block_size", "buffer_size"))
    # With one block at a time, the block being stored and the next one share a forward.
    needed = block.value * max(2, buffer.value)
    if budget.value < needed:
        yield budget.problem(
            f"a forward must hold the running blocks of one request, block_size {block.value} x buffer_size "
            f"{buffer.value}{' and its successor' * (buffer.value == 1)}; use at least {needed}"
        )


def profiler_has_a_place(settings: Settings) -> Iterator[str]:
    """A profiler without a directory is a problem."""
    place = settings["profiler_config.torch_profiler_dir"]
    if settings["profiler_config.profiler"].value == "torch" and not place.value:
        yield place.problem("the torch profiler writes files; name a directory, or leave the profiler out")


def _adapter_has_a_place(settings: Settings) -> Iterator[str]:
    use, place = settings["use_lora"], settings["lora_path"]
    if use.value and not place.value:
        yield place.problem("use_lora needs the adapter's directory; name it, or turn use_lora off")
    elif place.value and not use.value and not use.origin.by_user:
        yield place.problem("an adapter is named, but nothing turns it on; set use_lora, or leave lora_path out")


def _pool_is_odd(settings: Settings) -> Iterator[str]:
    pool = settings["sparse.pool_kernel"]
    if pool.value % 2 == 0:
        yield pool.problem("as many neighbours count on both sides; give an odd number")


def _delay_is_within_a_block(settings: Settings) -> Iterator[str]:
    delay, length = settings["sparse.delay_step"], settings["sparse.default_block_len"]
    if delay.value >= length.value:
        yield delay.problem(f"give less than sparse.default_block_len, which is {length.value}")


def _devices_suffice(settings: Settings) -> Iterator[str]:
    ids, device = settings["device_ids"], settings["device"]
    world = settings["tensor_parallel_size"].value * settings["data_parallel_size"].value
    if not ids.value:
        return
    if len(ids.value) < world:
        yield ids.problem(f"{world} processes need as many devices; name {world}")
    if len(set(ids.value)) < len(ids.value):
        yield ids.problem("a device is named twice; name each once")
    if device.value not in ("auto", "cuda", f"cuda:{ids.value[0]}"):
        yield ids.problem(f"device is {device.value!r} ({device.origin}); leave one of the two out")
