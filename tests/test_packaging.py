"""The distributions belong together, and nothing in the tree is tied to one machine."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECTS = {
    path.parent: tomllib.loads(path.read_text())
    for path in [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]
}
PLUGINS = {folder: project for folder, project in PROJECTS.items() if folder != ROOT}
VERSION = PROJECTS[ROOT]["project"]["version"]
GROUP = "diffulex.v1"

each_distribution = pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: PROJECTS[folder]["project"]["name"])
each_plugin = pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: PLUGINS[folder]["project"]["name"])


def package(folder: Path) -> Path:
    """The one package that a distribution ships."""
    target = PROJECTS[folder]["tool"]["hatch"]["build"]["targets"]["wheel"]
    shipped = [folder / path for path in target.get("packages") or target["only-include"]]
    (found,) = [path for path in shipped if path.is_dir()]
    return found


def metadata(folder: Path) -> dict[str, Any]:
    return PROJECTS[folder]["project"]


def entry_points(folder: Path) -> list[EntryPoint]:
    groups = {"console_scripts": metadata(folder).get("scripts", {}), **metadata(folder).get("entry-points", {})}
    return [EntryPoint(name, value, group) for group, points in groups.items() for name, value in points.items()]


def requirements(folder: Path) -> dict[str, Requirement]:
    return {found.name: found for found in map(Requirement, metadata(folder)["dependencies"])}


@each_distribution
def test_versions_move_in_lockstep(folder: Path) -> None:
    assert metadata(folder)["version"] == VERSION
    assert f"## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["diffulex", "diffulex_core"])
def test_a_package_that_tells_its_version_tells_the_right_one(name: str) -> None:
    assert importlib.import_module(name).__version__ == VERSION


@each_distribution
def test_an_installed_distribution_is_the_one_in_this_tree(folder: Path) -> None:
    installed = distribution(metadata(folder)["name"])
    assert installed.version == VERSION
    wanted = {(point.group, point.name, point.value) for point in entry_points(folder)}
    assert {(point.group, point.name, point.value) for point in installed.entry_points} == wanted


@each_distribution
def test_every_package_is_typed_licensed_and_introduced(folder: Path) -> None:
    assert (package(folder) / "py.typed").is_file()
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (folder / metadata(folder)["readme"]).read_text().startswith("# ")
    assert metadata(folder)["license"] == "Apache-2.0"
    assert metadata(folder)["requires-python"] == ">=3.11"


@each_plugin
def test_a_plugin_accepts_this_core_and_refuses_the_next_minor_version(folder: Path) -> None:
    core = requirements(folder)["diffulex-core"].specifier
    assert core.contains(VERSION)
    assert core.contains("0.1.9")
    assert not core.contains("0.2.0")


def test_the_facade_brings_every_first_party_plugin() -> None:
    facade = requirements(ROOT / "plugins/diffulex")
    plugins = {metadata(folder)["name"] for folder in PLUGINS} - {"diffulex"}
    assert set(facade) == plugins | {"diffulex-core"}
    assert all(requirement.specifier.contains(VERSION) for requirement in facade.values())


@each_distribution
def test_every_entry_point_resolves(folder: Path) -> None:
    for point in entry_points(folder):
        loaded = point.load()
        if point.group == GROUP:
            hooks = [name for name in vars(loaded) if name.startswith("diffulex_")]
            assert hooks, f"{point.value} implements no hook"
        elif point.group == "pytest11":
            assert [name for name in vars(loaded) if name.startswith("pytest_")], f"{point.value} implements no hook"
        else:
            assert callable(loaded)


def test_the_development_requirements_pin_torch_first_and_install_every_distribution_from_the_tree() -> None:
    text = (ROOT / "requirements-dev.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0] == "torch==2.13.0"
    installed = {(ROOT / line.removeprefix("-e ")).resolve() for line in lines if line.startswith("-e ")}
    assert installed == set(PROJECTS)


@pytest.mark.parametrize(
    "statement",
    [
        "import diffulex; diffulex.SamplingParams; diffulex.DecodingThresholds",
        "import diffulex_core.plugin, diffulex_core.hookspecs, diffulex_core.protocols",
        "import diffulex_core.config, diffulex_core.outputs, diffulex_core.sources, diffulex_core.checkpoint",
        "from diffulex_core.host import Host; Host.discover()",
        "from diffulex_core.cli.app import build_cli; from diffulex_core.host import Host; build_cli(Host.discover())",
        "import diffulex_llada.config, diffulex_multibd.patterns, diffulex_tiny.source, diffulex_tiny.problems",
    ],
)
def test_torch_is_not_imported_by(statement: str) -> None:
    code = f"import sys; {statement}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_pytest_plugin_imports_nothing_of_ours() -> None:
    code = "import sys, _diffulex_pytest; print([name for name in sys.modules if name.startswith('diffulex')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_names_a_path_of_one_machine() -> None:
    here = {str(ROOT), str(Path.home())} - {"/"}
    places = (*map(re.escape, here), r"/(?:home|Users)/\w+", r"[A-Z]:\\Users")
    pattern = re.compile(rf"(?<![\w.:/-])(?:{'|'.join(places)})\b")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path == Path(__file__) or not path.is_file():
            continue
        text = path.read_bytes().decode(errors="ignore")
        found += [f"{name}: {match.group()}" for match in pattern.finditer(text)]
    assert found == []
