"""The core's own parts, and those that the kit lends to others, do what the engine relies on."""

from __future__ import annotations

from collections.abc import Callable

from diffulex_core.testing import parametrize_with_checks
from diffulex_core.testing.copying import COPYING
from diffulex_core.testing.engines import POISONED, SHARP, STATIC
from diffulex_core.testing.reference import plugin as reference


@parametrize_with_checks("core")
def test_the_core(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks(
    reference.__name__,
    expected_failures={
        "check_plugin_discovery_is_light": "it is a part of the kit, which imports torch",
        **{
            f"check_executor_decides_as_one_process_does[executor {name}]": "it changes the network on purpose"
            for name in (SHARP, POISONED, COPYING, STATIC)
        },
    },
)
def test_the_parts_that_the_kit_lends(check: Callable[[], None]) -> None:
    check()
