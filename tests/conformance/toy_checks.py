"""Checks whose outcome is known beforehand, and a plugin with one component, for tests of the kit's own mechanics."""

from __future__ import annotations

from types import ModuleType

from diffulex_core.plugin import Component, Register, hookimpl
from diffulex_core.testing import CheckFailed, Effort, check
from diffulex_core.testing.subjects import KVCacheSubject


@check(KVCacheSubject)
def check_holds(subject: KVCacheSubject, effort: Effort) -> None:
    """Holds for everything.

    Why: the mechanics need one that passes.
    Fix: nothing.
    """


@check(KVCacheSubject)
def check_breaks(subject: KVCacheSubject, effort: Effort) -> None:
    """Holds for nothing.

    Why: the mechanics need one that fails.
    Fix: nothing.
    """
    raise CheckFailed(f"{subject.label} is broken")


@check(KVCacheSubject, level="recommended")
def check_matters_little(subject: KVCacheSubject, effort: Effort) -> None:
    """Holds for nothing, and is recommended only.

    Why: the mechanics need one that warns.
    Fix: nothing.
    """
    raise CheckFailed("it is not nice")


@check(KVCacheSubject, tier="full")
def check_takes_long(subject: KVCacheSubject, effort: Effort) -> None:
    """Holds for everything, in its own time.

    Why: the mechanics need one of a higher tier.
    Fix: nothing.
    """
    assert effort.tier != "fast"


@check(KVCacheSubject, when=lambda subject: f"{subject.name} is too small")
def check_is_about_others(subject: KVCacheSubject, effort: Effort) -> None:
    """Says nothing about anything.

    Why: the mechanics need one that does not apply.
    Fix: nothing.
    """
    raise CheckFailed("it ran")


CHECKS = (check_holds, check_breaks, check_matters_little, check_takes_long, check_is_about_others)

FAILS = {"check_breaks": "it cannot do better"}


def plugin(name: str = "toy_plugin", cache: str = "toy_cache") -> ModuleType:
    """A plugin that registers a KV cache, the engine's own under another name."""
    module = ModuleType(name)

    @hookimpl
    def diffulex_register_components(register: Register[Component]) -> None:
        register(Component(kind="kv_cache", name=cache, factory="diffulex_core.kv_cache:PagedKVCache"))

    vars(module)["diffulex_register_components"] = diffulex_register_components
    return module
