"""`diffulex plugins new`: write a small package that is a plugin, passes its own tests, and is there to be changed."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from importlib.metadata import distributions
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

import attrs
import click

from diffulex_core import __version__
from diffulex_core.errors import PluginError
from diffulex_core.host import Host

Kind = Literal["family", "strategy", "backend"]

KIT_PREFIX = "kit_"
"""Begins the names of what the conformance kit brings; they stand beside every plugin that is checked."""
LONGEST = 30
"""Characters of a name, so that the lines that hold it stay within any style's limit."""

_TITLES: Mapping[Kind, str] = MappingProxyType(
    {"family": "model family", "strategy": "decoding strategy", "backend": "attention backend"}
)
_REGISTRIES: Mapping[Kind, str] = MappingProxyType({"family": "model", "strategy": "strategy", "backend": "attention"})
_TO_CHANGE: Mapping[Kind, str] = MappingProxyType(
    {"family": "model.py", "strategy": "strategy.py", "backend": "attention.py"}
)
_FIELD = re.compile(r"\{\{(\w+)\}\}")


@attrs.frozen(kw_only=True)
class Scaffold:
    """A package to be written.

    Attributes:
        name: of the plugin and of what it registers.
        kind: what it registers.
    """

    name: str
    kind: Kind

    @property
    def package(self) -> str:
        """The package that is imported."""
        return f"diffulex_{self.name}"

    @property
    def dist(self) -> str:
        """The distribution that is installed, and the folder that holds it."""
        return self.package.replace("_", "-")

    def files(self) -> dict[str, str]:
        """Text of each file by its path in the folder."""
        template = files("diffulex_core") / "_template"
        found = {**_texts(template / "common"), **_texts(template / self.kind)}
        return {self._path(path): self._fill(text) for path, text in sorted(found.items())}

    def _path(self, path: str) -> str:
        parts = path.removesuffix(".tmpl").replace("PACKAGE", self.package).split("/")
        return "/".join(re.sub("^dot_", ".", part) for part in parts)

    def _fill(self, text: str) -> str:
        major, minor = __version__.split(".")[:2]
        values = {
            "name": self.name,
            "package": self.package,
            "dist": self.dist,
            "title": _TITLES[self.kind],
            "Class": "".join(word.capitalize() for word in self.name.split("_")),
            "core": f">={major}.{minor},<{major}.{int(minor) + 1}",
        }
        return _FIELD.sub(lambda field: values[field[1]], text)


@click.command("new")
@click.argument("name")
@click.option(
    "--kind", type=click.Choice(get_args(Kind)), default="family", show_default=True, help="What the plugin registers."
)
@click.option(
    "--dir",
    "parent",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where to make the package's folder; the current directory unless given.",
)
@click.pass_obj
def new(host: Host, name: str, kind: Kind, parent: Path) -> None:
    """Write a package diffulex-NAME that registers NAME: code, tests, README and CI, complete and small.

    It passes its own tests at once; make it yours from there.
    """
    scaffold = Scaffold(name=name, kind=kind)
    if problem := problem_of_name(scaffold, host):
        raise PluginError(f"{name!r} cannot be the name of a new plugin: {problem}")
    folder = parent / scaffold.dist
    if folder.exists() or folder.is_symlink():
        raise PluginError(f"{folder} exists already, and nothing in it was changed. Remove it, or give another --dir.")
    texts = scaffold.files()
    try:
        for path, text in texts.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PluginError(f"{folder} could not be written ({error}). Give another --dir.") from error
    click.echo(_next_steps(scaffold, folder, list(texts)))


def problem_of_name(scaffold: Scaffold, host: Host) -> str:
    """Why a plugin may not be called that, with what to do; empty when it may."""
    name = scaffold.name
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        cleaned = re.sub("[^a-z0-9]+", "_", name.lower()).strip("_").lstrip("0123456789_")
        usable = cleaned and not keyword.iskeyword(cleaned)
        advice = f" Call it {cleaned!r}?" if usable and cleaned != name else ""
        return f"it becomes a part of Python names; use lower-case letters, digits and underscores.{advice}"
    if len(name) > LONGEST:
        return f"it is {len(name)} characters long; use at most {LONGEST}."
    if name.startswith(KIT_PREFIX):
        return f"names that begin with {KIT_PREFIX!r} belong to the conformance kit. Choose another name."
    registry = host.registries[_REGISTRIES[scaffold.kind]]
    if registry.is_contested(name):
        return "two plugins contest it already. Choose another name."
    if name in registry:
        return f"it is the {_TITLES[scaffold.kind]} of {registry.entry(name).provenance} already. Choose another name."
    for record in host.plugins():
        if name == record.provenance.plugin:
            return f"it is the plugin {record.provenance} already. Choose another name, or uninstall that."
    if any(re.sub("[-_.]+", "-", each.name).lower() == scaffold.dist for each in distributions() if each.name):
        return f"the distribution {scaffold.dist} is installed already. Choose another name, or uninstall it."
    if find_spec(scaffold.package) is not None:
        return f"the package {scaffold.package} can be imported already. Choose another name."
    return ""


def _texts(folder: Traversable, prefix: str = "") -> dict[str, str]:
    """Text of each file below a folder, by its path there."""
    found: dict[str, str] = {}
    for each in folder.iterdir():
        path = f"{prefix}{each.name}"
        found |= _texts(each, f"{path}/") if each.is_dir() else {path: each.read_text(encoding="utf-8")}
    return found


def _next_steps(scaffold: Scaffold, folder: Path, paths: list[str]) -> str:
    listed = "\n".join(f"  {folder / path}" for path in paths)
    check = f"diffulex plugins check {scaffold.name}"
    width = max(len(check), len("python -m pytest"))
    return f"""Wrote the {_TITLES[scaffold.kind]} {scaffold.name!r}:
{listed}

Next:
  cd {folder}
  python -m pip install -e ".[test]"
  {"python -m pytest":{width}}  # the conformance checks; they pass
  {check:{width}}  # the same without pytest

Then make it yours, src/{scaffold.package}/{_TO_CHANGE[scaffold.kind]} first, and run the checks again."""
