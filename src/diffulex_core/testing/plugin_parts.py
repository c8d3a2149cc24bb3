"""What the references of a plugin's descriptors must be: for each, the reasons that it is not."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch

from diffulex_core.descriptors import AttentionBackendPlugin, Component, DecodingStrategy, ModelFamily
from diffulex_core.distributed import ALONE
from diffulex_core.host import Host
from diffulex_core.kernels.layers import LayerKernels
from diffulex_core.kernels.moe import ExpertsKernel
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.pattern import AttentionPattern, BlockCausal
from diffulex_core.protocols import (
    AttentionBackend,
    CachePolicy,
    KVCacheManager,
    ModelSource,
    Sampler,
    Scheduler,
    WeightResolver,
)
from diffulex_core.registry import Entry
from diffulex_core.testing.check import CheckFailed
from diffulex_core.testing.subjects import PluginSubject
from diffulex_core.types import KVGeometry

Judge = Callable[[Any], str | None]


@attrs.frozen(kw_only=True, eq=False)
class Part:
    """One reference of a descriptor.

    Attributes:
        owner: the descriptor, in words.
        field: of the descriptor.
        reference: what it holds.
        judge: why the code is not what the field promises, or None where it is.
        optional: only tests need it, and it may need packages of its own.
    """

    owner: str
    field: str
    reference: str
    judge: Judge
    optional: bool = False

    @property
    def module(self) -> str:
        return self.reference.partition(":")[0]

    def __str__(self) -> str:
        return f"{self.owner}: {self.field}={self.reference!r}"


def is_not_loaded(subject: PluginSubject) -> str | None:
    """Why most checks say nothing about the plugin; None where they do."""
    status = subject.record.status
    return None if status == "loaded" else f"it is {status}, as check_plugin_is_loaded says"


def refuse(problems: Iterable[str]) -> None:
    """Raise CheckFailed with all problems in one message, if there are any."""
    if text := "; ".join(problems):
        raise CheckFailed(f"{text.rstrip('.')}.")


def entries_of(subject: PluginSubject) -> list[tuple[str, Entry[Any]]]:
    """(kind, entry) of everything that the plugin registers."""
    return [
        (kind, entry)
        for kind, registry in subject.host.registries.items()
        for entry in registry.entries()
        if entry.provenance == subject.record.provenance
    ]


def parts_of(subject: PluginSubject) -> list[Part]:
    """All references of the plugin's descriptors."""
    return [part for _, entry in entries_of(subject) for part in _parts(entry.descriptor)]


def missing_names(subject: PluginSubject) -> list[str]:
    """Names of components that the plugin's strategies ask for and nobody registers."""
    return [
        f"strategy {entry.descriptor.name!r}: {kind}={name!r} names no registered component"
        for _, entry in entries_of(subject)
        if isinstance(entry.descriptor, DecodingStrategy)
        for mode in ("naive", *entry.descriptor.modes)
        for kind, name in _components(entry.descriptor.in_mode(mode))
        if name is not None and not _known(subject.host, kind, name)
    ]


def _components(strategy: DecodingStrategy) -> Iterator[tuple[str, str | None]]:
    yield "scheduler", strategy.scheduler
    yield "kv_cache", strategy.kv_cache
    yield "runner", strategy.runner
    yield "sampler", strategy.sampler


def _known(host: Host, kind: str, name: str) -> bool:
    return name in host.registries[kind]


def _parts(descriptor: object) -> Iterator[Part]:
    match descriptor:
        case ModelFamily():
            yield from _of_family(descriptor)
        case DecodingStrategy():
            yield from _of_strategy(descriptor)
        case AttentionBackendPlugin():
            owner = f"attention backend {descriptor.name!r}"
            yield Part(owner=owner, field="impl", reference=descriptor.impl, judge=_backend)
            yield Part(owner=owner, field="probe", reference=descriptor.probe, judge=_called("a case", None))
        case Component():
            owner = f"{descriptor.kind} {descriptor.name!r}"
            yield Part(owner=owner, field="factory", reference=descriptor.factory, judge=_FACTORIES[descriptor.kind])


def _of_family(family: ModelFamily) -> Iterator[Part]:
    owner = f"model family {family.name!r}"
    build = _called("config, ctx", None, None)
    yield Part(owner=owner, field="build", reference=family.build, judge=build)
    yield Part(owner=owner, field="weights", reference=family.weights, judge=_is(WeightResolver))
    if family.config_cls is not None:
        yield Part(owner=owner, field="config_cls", reference=family.config_cls, judge=_attrs_class)
    if family.check_config is not None:
        yield Part(owner=owner, field="check_config", reference=family.check_config, judge=_called("config", {}))
    if family.tiny is not None:
        yield Part(owner=owner, field="tiny", reference=family.tiny, judge=_config)
    if family.hf_reference is not None:
        yield Part(owner=owner, field="hf_reference", reference=family.hf_reference, judge=_callable, optional=True)
    for name, reference in family.tokenizer_classes.items():
        yield Part(owner=owner, field=f"tokenizer_classes[{name!r}]", reference=reference, judge=_class, optional=True)


def _of_strategy(strategy: DecodingStrategy) -> Iterator[Part]:
    owner = f"strategy {strategy.name!r}"
    yield Part(owner=owner, field="pattern", reference=strategy.pattern, judge=_pattern)
    request = _called("request_id, prompt, params and context by keyword", request_id=0, prompt=0, params=0, context=0)
    if strategy.req is not None:
        yield Part(owner=owner, field="req", reference=strategy.req, judge=request)
    if strategy.config_cls is not None:
        yield Part(owner=owner, field="config_cls", reference=strategy.config_cls, judge=_attrs_class)
    for name, mode in strategy.modes.items():
        if mode.req is not None:
            yield Part(owner=f"{owner}, mode {name!r}", field="req", reference=mode.req, judge=request)


def _callable(code: Any) -> str | None:
    return None if callable(code) else f"is {_text(code)}, which cannot be called"


def _class(code: Any) -> str | None:
    return None if inspect.isclass(code) else f"is {_text(code)}, not a class"


def _attrs_class(code: Any) -> str | None:
    return None if inspect.isclass(code) and attrs.has(code) else f"is {_text(code)}, not an attrs class"


def _called(how: str, *positional: object, **named: object) -> Judge:
    """Something that takes these arguments."""

    def judge(code: Any) -> str | None:
        if not callable(code):
            return _callable(code)
        try:
            inspect.signature(code).bind(*positional, **named)
        except TypeError as error:
            return f"cannot be called with {how}: {error}"
        except ValueError:
            return None  # written in C, without a signature
        return None

    return judge


def _is(protocol: Any) -> Judge:
    def judge(code: Any) -> str | None:
        if isinstance(code, protocol) and not inspect.isclass(code):
            return None
        return f"is {_text(code)}, not a {protocol.__name__}"

    return judge


def _makes(protocol: Any, *positional: object, **named: object) -> Judge:
    """A factory whose product satisfies a protocol."""

    def judge(code: Any) -> str | None:
        if not callable(code):
            return _callable(code)
        made = code(*positional, **named)
        return None if isinstance(made, protocol) else f"makes {_text(made)}, not a {protocol.__name__}"

    return judge


def _backend(code: Any) -> str | None:
    if inspect.isclass(code):
        return None if issubclass(code, AttentionBackend) else f"is {_text(code)}, not an AttentionBackend"
    return _called("no arguments")(code)


def _config(code: Any) -> str | None:
    if not isinstance(code, Mapping):
        return f"is {_text(code)}, not a config.json as a dict"
    try:
        again = json.loads(json.dumps(dict(code)))
    except (TypeError, ValueError) as error:
        return f"is no JSON: {error}"
    return None if again == dict(code) else "is no JSON: written and read again it is another dict"


def _pattern(code: Any) -> str | None:
    if not callable(code):
        return _callable(code)
    for size in (4, 32):
        pattern = code(size)
        if not isinstance(pattern, AttentionPattern):
            return f"makes {_text(pattern)}, not an AttentionPattern"
        if pattern.block_size != size:
            return f"makes a pattern of block_size {pattern.block_size} when asked for {size}"
    return None


def _sampler(code: Any) -> str | None:
    if not callable(code):
        return _callable(code)
    made = code(vocab_size=5, forbidden=frozenset(), tp=ALONE)
    return None if isinstance(made, Sampler) else f"makes {_text(made)}, not a Sampler"


def _scheduler(code: Any) -> str | None:
    kv_cache = PagedKVCache(num_pages=4, page_size=4, pattern=BlockCausal(block_size=4), prefix_caching=True)
    sizes = {"max_num_reqs": 2, "max_num_batched_tokens": 16, "block_size": 4, "max_refresh_tokens": None}
    return _makes(Scheduler, kv_cache, **sizes)(code)


_GEOMETRY = (KVGeometry(num_heads=2, num_kv_heads=1, head_dim=4),)

_FACTORIES: Mapping[str, Judge] = {
    "scheduler": _scheduler,
    "kv_cache": _makes(
        KVCacheManager, num_pages=4, page_size=4, pattern=BlockCausal(block_size=4), prefix_caching=True
    ),
    "cache_policy": _makes(CachePolicy, geometry=_GEOMETRY, tp=ALONE),
    "runner": _called(
        "model, sampler, pattern, backend, kv_store, page_size, device, max_logits_tokens and cache_policy by keyword",
        model=None, sampler=None, pattern=None, backend=None, kv_store=None, page_size=4,
        device=torch.device("cpu"), max_logits_tokens=None, cache_policy=None,
    ),
    "sampler": _sampler,
    "executor": _called(
        "a blueprint, and host, devices, replica, sharers and progress by keyword",
        None, host=None, devices=None, replica=0, sharers=1, progress=False,
    ),
    "model_source": _makes(ModelSource),
    "kernel": _makes(ExpertsKernel),
    "layer_kernels": _makes(LayerKernels),
}  # fmt: skip


def _text(code: object) -> str:
    name = code.__qualname__ if inspect.isclass(code) else None
    return f"the class {name}" if name else f"a {type(code).__name__}"
