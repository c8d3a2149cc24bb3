"""The pytest plugin of diffulex: markers, `--diffulex-tier`, hypothesis profiles, and tests that run checks.

It stands outside the package, so that pytest loads it without importing anything of diffulex until a test asks.
"""

from __future__ import annotations

import pytest

TIERS = ("fast", "full", "nightly", "gpu")
PROFILES = "diffulex-"
"""How the names of the hypothesis profiles begin; a tier follows."""
MARKERS = (
    "diffulex_checks(request): runs once for each conformance check; set by parametrize_with_checks",
    "gpu: needs a CUDA device",
    "slow: takes more than a few seconds",
    "tp: starts several processes",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that says how hard conformance checks try."""
    parser.getgroup("diffulex").addoption(
        "--diffulex-tier",
        choices=TIERS,
        default="fast",
        help="how hard conformance checks try: fast (a minute for each plugin), full, nightly or gpu",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known, and the hypothesis profiles before hypothesis loads the one that was asked for."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if (config.getoption("--hypothesis-profile", None) or "").startswith(PROFILES):
        from diffulex_core.testing.effort import register_profiles

        register_profiles()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that `parametrize_with_checks` marks its checks."""
    if metafunc.definition.get_closest_marker("diffulex_checks") is not None:
        from diffulex_core.testing.collect import generate

        generate(metafunc, metafunc.config.getoption("--diffulex-tier"))
