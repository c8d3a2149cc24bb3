"""The tutorials are followed to the letter: files are written, commands and examples run and say what pages show."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from diffulex_core.cli.app import build_cli
from diffulex_core.host import Host
from diffulex_core.testing import checks_for
from tests.test_docs import code_blocks
from tests.thirdparty.checkpoint import write_checkpoint

ROOT = Path(__file__).parent.parent
PAGES = sorted(ROOT.glob("docs/tutorials/*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
MODEL = "path/to/MyModel"
"""What pages call a checkpoint that the reader has."""
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@attrs.define(kw_only=True)
class Reader:
    """Somebody who follows a page.

    Attributes:
        here: the current directory, as commands left it.
        thorough: runs the conformance checks; otherwise it is only seen to that there are some.
        names: what Python has defined so far.
        done: commands that were run, by their first words.
    """

    here: Path
    thorough: bool
    names: dict[str, Any] = attrs.field(factory=lambda: {"__name__": "tutorial"})
    done: list[str] = attrs.field(factory=list)

    def follow(self, page: Path) -> None:
        """Do all that a page says; what stands in a block of text behind must come out."""
        blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
        assert len(blocks) == len(re.findall("^```", page.read_text(encoding="utf-8"), re.MULTILINE)) / 2
        said = ""
        for language, block in blocks:
            match language:
                case "bash":
                    said = "".join(self.command(line) for line in block.splitlines())
                case "python" if path := re.match(r"# ((?:src|tests)/\S+)\n", block):
                    said = self.write(path[1], block[path.end() :])
                case "python":
                    said = self.run(block)
                case "text":
                    assert block == said
                case _:
                    raise AssertionError(f"{page.name}: nobody executes {language}")

    def write(self, path: str, text: str) -> str:
        """Replace a file of the package; Python will import it anew."""
        assert (self.here / "pyproject.toml").is_file()
        (self.here / path).write_text(text)
        for name in [name for name in sys.modules if name.split(".")[0] == self.package]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return ""

    def run(self, code: str) -> str:
        """Run an example; what it prints."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(self.filled_in(code), self.names)
        return said.getvalue()

    def command(self, line: str) -> str:
        """Run a command; what it prints."""
        words = shlex.split(line)
        self.done.append(" ".join(words[:3]))
        match words:
            case ["cd", folder]:
                self.here = self.here / folder
                os.chdir(self.here)
            case ["python", "-m", "pip", "install", "-e", extras]:
                self.install(set(extras.removeprefix(".[").removesuffix("]").split(",")))
            case ["diffulex", "plugins", "check", name]:
                self.check(name, ["-m", "diffulex_core", "plugins", "check", name])
            case ["python", "-m", "pytest"]:
                self.check(self.here.name.removeprefix("diffulex-"), ["-m", "pytest", "-q", "-p", "no:cacheprovider"])
            case ["diffulex", *arguments]:
                return self.diffulex([self.filled_in(word) for word in arguments])
            case _:
                raise AssertionError(f"nobody executes {line!r}")
        return ""

    def diffulex(self, arguments: list[str]) -> str:
        """Run a command of diffulex that must succeed."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            build_cli(Host.discover(environ={})).main(arguments, standalone_mode=False)
        return said.getvalue()

    def install(self, extras: set[str]) -> None:
        """What pip does with an editable package, without a network: metadata beside the sources, on the path."""
        project = tomllib.loads((self.here / "pyproject.toml").read_text())["project"]
        assert extras <= project["optional-dependencies"].keys()
        sources, name = self.here / "src", project["name"].replace("-", "_")
        info = sources / f"{name}-{project['version']}.dist-info"
        info.mkdir()
        required = "".join(f"Requires-Dist: {each}\n" for each in project["dependencies"])
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n{required}"
        )
        points = project["entry-points"]["diffulex.v1"]
        (info / "entry_points.txt").write_text(
            "[diffulex.v1]\n" + "".join(f"{plugin} = {module}\n" for plugin, module in points.items())
        )
        sys.path.insert(0, str(sources))
        importlib.invalidate_caches()

    def check(self, name: str, arguments: list[str]) -> None:
        """Run the conformance checks in a process of their own, as the reader does."""
        assert [bound for bound in checks_for(name) if bound.reason_against is None]
        if self.thorough:
            path = os.pathsep.join([str(self.here / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
            done = subprocess.run(
                [sys.executable, *arguments],
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr

    @property
    def package(self) -> str:
        """The package that the page makes."""
        return self.here.name.replace("-", "_")

    def filled_in(self, text: str) -> str:
        """The text with a checkpoint, without weights, of the family that the page makes."""
        if MODEL not in text:
            return text
        config = vars(importlib.import_module(f"{self.package}.config"))["TINY"]
        return text.replace(MODEL, str(write_checkpoint(self.here / "checkpoint", config)))


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield Reader(here=tmp_path, thorough=False)
    for name in set(sys.modules) - before:
        if name.startswith("diffulex_my"):
            del sys.modules[name]


@each_page
def test_a_tutorial_works_as_it_is_written(page: Path, reader: Reader) -> None:
    reader.follow(page)
    assert {"diffulex plugins new", "diffulex plugins check", "python -m pip", "python -m pytest"} <= set(reader.done)


@pytest.mark.slow
@each_page
def test_the_checks_of_a_tutorial_pass_wherever_it_runs_them(page: Path, reader: Reader) -> None:
    reader.thorough = True
    reader.follow(page)


def test_there_is_a_tutorial_for_everything_that_can_be_scaffolded() -> None:
    assert [page.stem for page in PAGES] == ["backend", "family", "strategy"]
    for page in PAGES:
        assert code_blocks(page.read_text(), "bash")[0].startswith("diffulex plugins new ")
