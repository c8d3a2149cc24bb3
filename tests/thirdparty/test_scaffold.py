"""`diffulex plugins new` writes packages that are complete, small, clean, and work."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from click.testing import CliRunner, Result
from packaging.requirements import Requirement

from diffulex_core import __version__
from diffulex_core.blocks import BlockRule
from diffulex_core.cli.app import build_cli
from diffulex_core.cli.new import LONGEST, Kind, Scaffold
from diffulex_core.engine import Diffulex
from diffulex_core.host import Host
from diffulex_core.sampling_params import SamplingParams
from tests.thirdparty.checkpoint import write_checkpoint

KINDS: tuple[Kind, ...] = get_args(Kind)
RULES = "A,B,BLE,C4,E,W,F,I,N,PERF,PIE,PT,RET,RUF,SIM,UP"
FAMILY = {"pyproject.toml", "plugin.py", "model.py", "__init__.py", "test_conformance.py"}
"""What the author of a family maintains; a README, CI and .gitignore stand beside it."""

each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.discover(environ={})


def new(host: Host, *arguments: str | Path) -> Result:
    return CliRunner().invoke(build_cli(host), ["plugins", "new", *map(str, arguments)])


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of the path that holds a scaffolded package of each kind as if pip had installed it."""
    for kind in KINDS:
        scaffold = Scaffold(name=f"scaffolded_{kind}", kind=kind)
        for path, text in scaffold.files().items():
            if path.startswith("src/"):
                target = tmp_path / path.removeprefix("src/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
        info = tmp_path / f"{scaffold.package}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {scaffold.dist}\nVersion: 0.1.0\n")
        points = tomllib.loads(scaffold.files()["pyproject.toml"])["project"]["entry-points"]["diffulex.v1"]
        (info / "entry_points.txt").write_text(
            "[diffulex.v1]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("diffulex_scaffolded_")]:
        del sys.modules[name]


@each_kind
def test_a_package_is_written_whole_and_the_output_says_what_to_do_next(kind: Kind, host: Host, tmp_path: Path) -> None:
    done = new(host, "my_own", "--kind", kind, "--dir", tmp_path / "made" / "here")
    assert done.exit_code == 0, done.output
    folder = tmp_path / "made/here/diffulex-my-own"
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written >= {
        "pyproject.toml",
        "README.md",
        ".github/workflows/ci.yml",
        "src/diffulex_my_own/__init__.py",
        "src/diffulex_my_own/plugin.py",
        "src/diffulex_my_own/py.typed",
        "tests/test_conformance.py",
    }
    assert all(str(folder / path) in done.output for path in written)
    steps = ('python -m pip install -e ".[test]"', "python -m pytest", "diffulex plugins check my_own")
    assert all(step in done.output for step in (f"cd {folder}", *steps))
    named = re.findall(r"src/diffulex_my_own/\w+\.py", done.output.partition("make it yours")[2])
    assert len(named) == 1
    assert (folder / named[0]).is_file()


def test_a_family_is_written_unless_another_kind_is_asked_for(host: Host, tmp_path: Path) -> None:
    assert new(host, "one", "--dir", tmp_path).exit_code == 0
    assert (tmp_path / "diffulex-one/src/diffulex_one/model.py").is_file()
    assert new(host, "two", "--kind", "sampler", "--dir", tmp_path).exit_code == 2
    assert not (tmp_path / "diffulex-two").exists()


def test_the_smallest_family_stays_under_60_lines() -> None:
    files = Scaffold(name="mymodel", kind="family").files()
    ours = {path: text for path, text in files.items() if path.rpartition("/")[2] in FAMILY}
    assert len(ours) == len(FAMILY)
    assert sorted(files.keys() - ours.keys()) == [
        ".github/workflows/ci.yml",
        ".gitignore",
        "README.md",
        "src/diffulex_mymodel/py.typed",
    ]
    assert sum(bool(line.strip()) for text in ours.values() for line in text.splitlines()) < 60


@each_kind
@pytest.mark.parametrize("name", ["x", "a_name_that_is_as_long_as_can_be"[:LONGEST]])
def test_a_package_is_clean_whatever_it_is_called(kind: Kind, name: str, host: Host, tmp_path: Path) -> None:
    assert new(host, name, "--kind", kind, "--dir", tmp_path).exit_code == 0
    for path in tmp_path.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not re.search(r"(?<!\$)\{\{|PACKAGE", text), path
            assert not text or text.endswith("\n")
    for path in tmp_path.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.returns is not None, f"{path}: {node.name}"
    for command in (["check", "--select", RULES], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", "--line-length", "120", "."]
        (folder,) = tmp_path.iterdir()
        done = subprocess.run(ruff, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@each_kind
def test_a_package_declares_what_it_needs_and_what_it_is(kind: Kind) -> None:
    files = Scaffold(name="mymodel", kind=kind).files()
    project: dict[str, Any] = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["name"] == "diffulex-mymodel"
    core = Requirement(project["dependencies"][0])
    assert core.name == "diffulex-core"
    assert core.specifier.contains(__version__)
    assert not core.specifier.contains("0.2.0")
    assert Requirement(project["optional-dependencies"]["test"][0]).extras == {"testing"}
    assert project["entry-points"]["diffulex.v1"] == {"mymodel": "diffulex_mymodel.plugin"}
    jobs = yaml.safe_load(files[".github/workflows/ci.yml"])["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands[0] == 'python -m pip install -e ".[test]"'
    assert commands[1].startswith("python -m pytest")


def test_a_family_a_strategy_and_a_backend_work_together(installed: Path) -> None:
    host = Host.discover(environ={})
    assert [text for text in map(str, host.quarantined) if "scaffolded" in text] == []
    config = vars(__import__("diffulex_scaffolded_family.model").model)["TINY"]
    checkpoint = write_checkpoint(installed / "checkpoint", config)
    settings = {"load_format": "dummy", "decoding_strategy": "scaffolded_strategy", "block_size": 4}
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)

    def answer(**more: Any) -> tuple[tuple[int, ...], int]:
        with Diffulex(checkpoint, host=host, strict=True, **settings, **more) as engine:
            assert engine.config.family.name == "scaffolded_family"
            (output,) = engine.generate("What do strangers say?", params)
        assert len(output.token_ids) == 12
        return output.token_ids, output.nfe

    one_by_one = answer(max_run=1, accept_threshold=0.0)
    assert answer(max_run=1, accept_threshold=0.0, attn_impl="scaffolded_backend") == one_by_one
    # Random weights are sure of nothing, so a threshold of 0 lets every run grow to its limit.
    assert answer(max_run=4, accept_threshold=0.0)[1] < one_by_one[1]
    assert answer(max_run=4, accept_threshold=1.0) == one_by_one


def test_all_that_the_strategy_overrides_is_called(installed: Path) -> None:
    rule = __import__("diffulex_scaffolded_strategy.strategy").strategy.FromTheLeft
    methods = {name for name, value in vars(rule).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert {"groups", "apply"} <= methods <= set(dir(BlockRule))


def test_the_strategy_decides_strictly_from_the_left(installed: Path) -> None:
    host = Host.discover(environ={})
    config = vars(__import__("diffulex_scaffolded_family.model").model)["TINY"]
    checkpoint = write_checkpoint(installed / "checkpoint", config)
    settings = {"load_format": "dummy", "decoding_strategy": "scaffolded_strategy", "accept_threshold": 0.1}
    seen = 0
    with (
        Diffulex(checkpoint, host=host, strict=True, max_run=3, block_size=8, **settings) as engine,
        engine.stream("Hm?", SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)) as stream,
    ):
        for event in stream:
            start, decided = event.canvas.start, event.canvas.decided
            for block in range(start // 8, (start + len(decided)) // 8):
                inside = decided[max(0, block * 8 - start) : block * 8 + 8 - start].tolist()
                assert inside == sorted(inside, reverse=True)
                seen += 0 < sum(inside) < len(inside)
    assert seen > 3


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("My-Model", "Call it 'my_model'?"),
        ("2fast", "Call it 'fast'?"),
        ("class", "lower-case letters"),
        ("", "lower-case letters"),
        ("../up", "Call it 'up'?"),
        ("é", "lower-case letters"),
        ("m" * 31, "at most 30"),
        ("kit_decoder", "belong to the conformance kit"),
        ("llada", "model family of 'llada' (diffulex-llada 0.1.0)"),
        ("sdar_moe", "model family of 'sdar' (diffulex-sdar 0.1.0)"),
        ("multibd", "the plugin 'multibd' (diffulex-multibd 0.1.0)"),
        ("core", "the plugin 'core' (diffulex-core 0.1.0)"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_with_advice(name: str, problem: str, host: Host, tmp_path: Path) -> None:
    done = new(host, name, "--dir", tmp_path)
    assert done.exit_code != 0
    assert problem in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_another_kind_is_free(host: Host, tmp_path: Path) -> None:
    assert new(host, "d2f", "--kind", "backend", "--dir", tmp_path).exit_code == 0
    assert "decoding strategy of 'multibd'" in str(new(host, "d2f", "--kind", "strategy").exception)


def test_names_of_distributions_and_packages_that_are_there_are_refused(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "site")
    info = tmp_path / "site/Diffulex.Taken_one-3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Diffulex.Taken_one\nVersion: 3\n")
    (tmp_path / "site/diffulex_taken_two.py").write_text("")
    assert "diffulex-taken-one is installed" in str(new(host, "taken_one", "--dir", tmp_path).exception)
    assert "diffulex_taken_two can be imported" in str(new(host, "taken_two", "--dir", tmp_path).exception)


def test_a_folder_that_exists_is_left_alone(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "diffulex-again"
    folder.mkdir()
    assert "exists already" in str(new(host, "again", "--dir", tmp_path).exception)
    assert list(folder.iterdir()) == []
    shutil.rmtree(folder)
    assert new(host, "again", "--dir", tmp_path).exit_code == 0


def test_a_place_that_cannot_be_written_is_named(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = str(new(host, "lost", "--dir", tmp_path / "file" / "below").exception)
    assert "could not be written" in message
    assert str(tmp_path / "file/below/diffulex-lost") in message
