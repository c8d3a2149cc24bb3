"""What plugin authors build on changes only on purpose."""

from __future__ import annotations

import ast
import difflib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import attrs
import pytest

from diffulex_core import plugin
from tests.core import published_api

ROOT = Path(__file__).parent.parent.parent
ADVICE = """The published API changed:

{changes}

Plugins that nobody here has seen build on it. If the change is meant,
 - add to it rather than change it: new fields and arguments have defaults, old names stay for a minor release,
 - a check is recommended for a minor release before it is required,
 - tell it in CHANGELOG.md, and follow "How the API changes" in docs/plugin-api.md,
 - run `python -m tests.core.published_api` and commit what it writes."""

PUBLIC_MODULES = (
    "diffulex_core.attention",
    "diffulex_core.blocks",
    "diffulex_core.canvas",
    "diffulex_core.config_json",
    "diffulex_core.context",
    "diffulex_core.distributed",
    "diffulex_core.engine",
    "diffulex_core.kernels",
    "diffulex_core.layers",
    "diffulex_core.plugin",
    "diffulex_core.sampling",
    "diffulex_core.testing",
    "diffulex_core.transfer",
    "diffulex_core.weights",
)
ENGINE_MODULES = (
    "diffulex_core.config",
    "diffulex_core.generation",
    "diffulex_core.host",
    "diffulex_core.outputs",
    "diffulex_core.stop_strings",
    "diffulex_core.tokenizer",
)
RUN_ENGINES = frozenset({"diffulex_serve"})
"""Packages whose commands make engines and hand on what these say."""


def test_the_published_api_is_the_pinned_one() -> None:
    pinned, found = published_api.PINNED.read_text().splitlines(), published_api.render().splitlines()
    changes = [line for line in difflib.unified_diff(pinned, found, lineterm="", n=2) if line[:3] not in ("---", "+++")]
    assert not changes, ADVICE.format(changes="\n".join(changes))


def test_a_changed_default_a_lost_name_and_a_new_argument_all_show(monkeypatch: pytest.MonkeyPatch) -> None:
    before = published_api.render()

    @attrs.frozen(kw_only=True)
    class SamplerTraits:
        force_rule: str = "always"

    def key(default: object, help: str, *, unit: str = "") -> None:
        del default, help, unit

    for name, value in (("SamplerTraits", SamplerTraits), ("key", key)):
        with monkeypatch.context() as patch:
            patch.setattr(plugin, name, value)
            assert published_api.render() != before
    monkeypatch.setattr(plugin, "__all__", plugin.__all__[1:])
    assert published_api.render() != before


def test_the_api_version_is_the_entry_point_group_of_the_installed_plugins() -> None:
    assert plugin.ENTRY_POINT_GROUP == "diffulex.v1"
    assert {"core", "llada", "multibd"} <= {point.name for point in entry_points(group=plugin.ENTRY_POINT_GROUP)}


def test_a_plugin_author_imports_everything_without_torch() -> None:
    code = (
        "import sys; from diffulex_core.plugin import *; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_all_that_is_imported_into_the_module_is_offered() -> None:
    module = ast.parse(Path(plugin.__file__).read_text())
    imported = {
        alias.asname or alias.name
        for node in module.body
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    }
    assert imported == set(plugin.__all__)


def _imports(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


SOURCES = [
    path
    for path in sorted((ROOT / "plugins").glob("*/src/**/*.py"))
    # The facade and the benchmark recipe are users of engines, not plugins of them.
    if path.relative_to(ROOT).parts[1] != "diffulex" and "recipe" not in path.parts
]


@pytest.mark.parametrize("package", sorted({path.relative_to(ROOT).parts[1] for path in SOURCES}))
def test_a_first_party_plugin_imports_what_strangers_may(package: str) -> None:
    elsewhere = {module for module, names in _publishing().items() for _ in names}
    public = (*PUBLIC_MODULES, *ENGINE_MODULES) if package in RUN_ENGINES else PUBLIC_MODULES
    strange = []
    for path in SOURCES:
        if path.relative_to(ROOT).parts[1] != package:
            continue
        for module, name in _imports(path):
            if module.split(".")[0] != "diffulex_core":
                continue
            hidden = name in plugin.__all__ and module in elsewhere
            if hidden or not any(module == each or module.startswith(f"{each}.") for each in public):
                strange.append(f"{path.relative_to(ROOT)}: from {module} import {name}")
    assert strange == []


def test_the_packages_that_plugins_may_import_are_documented_and_no_others() -> None:
    page = (ROOT / "docs/plugin-api.md").read_text()
    documented = re.findall(r"^\| `(diffulex_core\.\w+)` \|", page, re.MULTILINE)
    assert sorted([*documented, "diffulex_core.plugin"]) == sorted([*PUBLIC_MODULES, *ENGINE_MODULES])
    private = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [contract] = [each for each in private if each["id"] == "plugins-use-public-modules"]
    assert set(contract["forbidden_modules"]).isdisjoint([*PUBLIC_MODULES, *ENGINE_MODULES])


def _publishing() -> dict[str, list[str]]:
    """The modules that `diffulex_core.plugin` offers the names of."""
    found: dict[str, list[str]] = {}
    for module, name in _imports(Path(plugin.__file__)):
        found.setdefault(module, []).append(name)
    return found
