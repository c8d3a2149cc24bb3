"""A name that nothing has: whoever asked for it is told what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffulex_core.host import Host
from diffulex_core.unknown import hints
from tests.core.throwaway import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def refused(site: Site, name: str) -> str:
    process = site.run("-m", "diffulex_core", "plugins", "show", name)
    assert process.returncode == 2
    return process.stderr


def test_plugins_that_are_there_are_named_and_so_are_those_that_cannot_be_loaded(site: Site) -> None:
    site.install("fruit", "")
    site.install("rotten", "import no_such_kernels")
    told = refused(site, "nothing_like_it")
    assert {"core", "fruit", "rotten"} <= set(told.partition("Plugins: ")[2].partition(".")[0].split(", "))
    assert "no_such_kernels" in told


def test_of_a_distribution_without_an_entry_point_the_missing_table_is_named(site: Site) -> None:
    told = refused(site, "Attrs")
    assert "attrs" in told
    assert "no entry point in the group 'diffulex.v1'" in told
    assert "add one to its pyproject.toml" in told


def test_a_distribution_that_builds_on_plugins_sends_to_them() -> None:
    told = hints("diffulex", Host.discover())
    brought, _, rest = told.partition("it builds on ")[2].partition(": ask for one of these")
    assert {"core", "llada", "multibd", "tiny"} <= set(brought.split(", "))
    assert rest
    assert "Did you mean" not in told


@pytest.mark.parametrize("name", ["", "../etc", "a b", "ä"])
def test_what_is_no_name_of_a_distribution_is_asked_of_nobody(name: str) -> None:
    assert "entry point" not in hints(name, Host.discover(()))
