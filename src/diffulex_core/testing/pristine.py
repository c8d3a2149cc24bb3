"""Modules as if they had just been imported: what they remember of earlier calls is not there."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_KEPT = "diffulex_core"


@contextmanager
def pristine(reference: str) -> Iterator[Any]:
    """What a reference "package.module:attribute" leads to once its package is imported anew.

    It is None for code of core, and for a package that cannot be imported twice. Afterwards the package is the one that
    it was; modules of other packages are the same throughout.
    """
    package = reference.partition(":")[0].partition(".")[0]
    before = {name: module for name, module in sys.modules.items() if _is_of(name, package)}
    for name in before:
        del sys.modules[name]
    try:
        yield _resolved(reference) if package != _KEPT else None
    finally:
        for name in [name for name in sys.modules if _is_of(name, package)]:
            del sys.modules[name]
        sys.modules.update(before)


def _is_of(module: str, package: str) -> bool:
    return package != _KEPT and (module == package or module.startswith(f"{package}."))


def _resolved(reference: str) -> Any:
    try:
        return pkgutil.resolve_name(reference)
    except Exception:  # noqa: BLE001 - importing code under test for a second time may raise anything
        return None
