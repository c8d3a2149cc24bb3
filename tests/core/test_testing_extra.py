"""Whoever installs `diffulex-core[testing]` has all that the conformance kit imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def imported(folder: Path) -> set[str]:
    """Names of the packages that the modules of a folder import, wherever they do."""
    found = set[str]()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(each.name.partition(".")[0] for each in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
                found.add(node.module.partition(".")[0])
    return found


def test_what_the_kit_imports_is_required_by_the_core_or_by_the_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["testing"]]
    declared = {re.split("[^A-Za-z0-9_.-]", each)[0].replace("-", "_").lower() for each in required}
    strangers = imported(ROOT / "src" / "diffulex_core" / "testing") - sys.stdlib_module_names - declared
    assert strangers - {"diffulex_core"} == set()
