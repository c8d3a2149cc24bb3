"""The plugin does what the engine relies on."""

from __future__ import annotations

from collections.abc import Callable

from diffulex_core.testing import parametrize_with_checks


@parametrize_with_checks("gemma")
def test_conformance(check: Callable[[], None]) -> None:
    check()
