"""The three-line test: a test function that runs once for each check of a plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import TypeVar

import attrs
import pytest

T = TypeVar("T", bound=Callable[..., object])


@attrs.frozen(kw_only=True, eq=False)
class Request:
    """What a decorated test asks for.

    Attributes:
        name: whose checks.
        expected_failures: reasons by the name of a check (or its id, "check_name[subject]").
        plugins: modules that are plugins without being installed.
    """

    name: str
    expected_failures: Mapping[str, str]
    plugins: tuple[ModuleType, ...]


def parametrize_with_checks(
    name: str, *, expected_failures: Mapping[str, str] | None = None, plugins: Iterable[ModuleType] = ()
) -> Callable[[T], T]:
    """Run a test once for each check of everything called `name`.

        @parametrize_with_checks("mymodel", expected_failures={"check_shares_agree": "no tensor parallelism yet"})
        def test_conformance(check):
            check()

    The option `--diffulex-tier` says how hard to try. A check that says nothing about a subject is left out, one that
    is expected to fail and passes is an error, and so is an unknown name in `expected_failures`. A recommended check
    that fails becomes a warning.

    Args:
        name: of a plugin, of its distribution, or of one family, strategy, attention backend or component.
        expected_failures: why a check fails for now, by its name (or its id, "check_name[subject]").
        plugins: modules that are plugins without being installed.
    """
    request = Request(name=name, expected_failures=dict(expected_failures or {}), plugins=tuple(plugins))
    return pytest.mark.diffulex_checks(request)
