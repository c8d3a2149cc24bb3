"""Making every short hash collide while code under test runs, to see whether it takes equal hashes for equality."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_KIT = "diffulex_core.testing"
_SHORT = ("xxh32", "xxh64", "xxh3_64")


@contextmanager
def colliding_hashes(modules: list[ModuleType]) -> Iterator[None]:
    """Let short hash functions return a constant where these modules call them.

    Short are those whose collisions must be reckoned with: `hash`, the checksums of zlib, and the functions of up to 64
    bits of xxhash where that is installed. Cryptographic hashes are left alone, since code may rely on them; so are
    dictionaries and sets, which compare what they find.
    """
    changes = [change for module in modules for change in _changes(module)]
    changes += [(zlib, name, _constant) for name in ("crc32", "adler32")]
    xxhash = sys.modules.get("xxhash")
    if xxhash is not None:
        changes += [(xxhash, f"{name}_intdigest", _constant) for name in _SHORT]
        changes += [(xxhash, name, _ConstantHasher) for name in _SHORT]
    missing = object()
    before = [(module, name, vars(module).get(name, missing)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in reversed(before):
            if value is missing:
                delattr(module, name)
            else:
                setattr(module, name, value)


def modules_of(instance: object) -> list[ModuleType]:
    """The modules that an object's classes are written in, and what is loaded of the package around its class."""
    homes = {each.__module__ for each in type(instance).__mro__}
    homes = {name for name in homes if name.partition(".")[0] not in sys.stdlib_module_names}
    package = type(instance).__module__.rpartition(".")[0]
    around = {name for name in list(sys.modules) if package and (name == package or name.startswith(f"{package}."))}
    return [sys.modules[name] for name in sorted(homes | around) if name in sys.modules and not name.startswith(_KIT)]


def _changes(module: ModuleType) -> Iterator[tuple[ModuleType, str, Callable[..., Any]]]:
    """A `hash` of the module's own, and what it imported by name."""
    yield module, "hash", _constant
    for name, value in list(vars(module).items()):
        if value is zlib.crc32 or value is zlib.adler32:
            yield module, name, _constant


def _constant(*args: object, **options: object) -> int:
    return 0


class _ConstantHasher:
    """In place of xxhash's objects."""

    def __init__(self, *args: object, **options: object) -> None:
        """Whatever is hashed does not matter."""

    def update(self, data: object) -> None:
        """Nothing changes."""

    def intdigest(self) -> int:
        return 0

    def digest(self) -> bytes:
        return b"\0" * 8

    def hexdigest(self) -> str:
        return "00" * 8
