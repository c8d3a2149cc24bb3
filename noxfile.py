"""The project's chores: `python -m nox` runs lint, types and tests; `python -m nox -l` lists all sessions."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
PLUGINS = tuple(sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")))
DISTRIBUTIONS = (".", *(f"plugins/{name}" for name in PLUGINS))
TORCH = next(line for line in (ROOT / "requirements-dev.txt").read_text().splitlines() if line.startswith("torch=="))
PROBLEMS = (
    "Q: Ann has 12 apples, buys 30 more and gives away 7. How many are left?",
    "Q: Tara has 14 marbles, gets 25 more and sells 27. How many marbles are left?",
    "Q: Paul has 24 pears. First Paul sells 3, then picks up 16 more. How many pears does Paul have now?",
    "Q: There are 20 oranges in a box. Leo puts in 16 and removes 1. How many are left?",
    (
        "Q: A shop has 24 pears. It sells 12 in the morning and buys 28 more in the evening. "
        "How many pears does the shop have now?"
    ),
)


def install_editable(session: nox.Session, *options: str) -> None:
    """Install the packages of this tree so that they run from it."""
    session.install(*options, *(part for path in DISTRIBUTIONS for part in ("-e", path)))


@nox.session
def demo(session: nox.Session) -> None:
    """Install what a user needs, load tiny/llada, answer problems and show the metrics."""
    session.install(TORCH)
    install_editable(session)
    session.run("diffulex", "generate", "--model", "tiny/llada", *(session.posargs or PROBLEMS))


@nox.session
def tests(session: nox.Session) -> None:
    """The fast tests, a file at a time on each core; arguments after `--` go to pytest in place of that."""
    session.install("-r", "requirements-dev.txt")
    fast = ("-q", "-m", "not slow", "-n", "auto", "--dist", "loadfile")
    session.run("python", "-m", "pytest", *(session.posargs or fast), env={"OMP_NUM_THREADS": "1"})


@nox.session
def soak(session: nox.Session) -> None:
    """Random requests on random engines for ten minutes, every step watched: `nox -s soak -- --minutes 60 --seed 3`."""
    session.install("-r", "requirements-dev.txt")
    session.run("python", "-m", "tests.soak", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's checks and format, and the import contracts."""
    session.install("ruff>=0.8", "import-linter>=2.1")
    install_editable(session, "--no-deps")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict on the sources; mypy and pyright on plugins that are right, and on ones that are wrong on purpose."""
    session.install("-r", "requirements-dev.txt")
    session.run("mypy", "--strict")
    session.run("mypy", "--strict", "tests/typing")
    session.run("pyright", "-p", "tests/typing")


@nox.session
def train_tiny(session: nox.Session) -> None:
    """Train a checkpoint of diffulex-tiny: `nox -s train_tiny -- llada2`; an interrupted run is resumed."""
    session.install(TORCH)
    install_editable(session)
    session.install("-e", "plugins/diffulex_tiny[train]")
    session.run("python", "-m", "diffulex_tiny.recipe", *(session.posargs or ("llada",)))


@nox.session
def wheels(session: nox.Session) -> None:
    """Build every distribution, look into the wheels, and use them from a clean environment."""
    target = ROOT / "dist"
    shutil.rmtree(target, ignore_errors=True)
    session.install("build")
    for path in DISTRIBUTIONS:
        session.run("python", "-m", "build", "--outdir", str(target), path, silent=True)
    built = sorted(target.glob("*.whl"))
    for wheel in built:
        check_wheel(session, wheel)

    clean = Path(session.create_tmp()).resolve() / "clean"
    shutil.rmtree(clean, ignore_errors=True)
    session.run("python", "-m", "venv", str(clean))
    binaries = clean / ("Scripts" if (clean / "Scripts").exists() else "bin")
    python = str(binaries / "python")
    session.run(python, "-m", "pip", "install", "--quiet", TORCH, *map(str, built), external=True)
    # A directory without sources, so that nothing but the wheels can be imported.
    with session.chdir(clean):
        session.run(str(binaries / "diffulex"), "plugins", "list", external=True)
        session.run(python, "-c", "from diffulex import Diffulex, SamplingParams; print(Diffulex)", external=True)
        session.run(str(binaries / "diffulex"), "generate", "--model", "tiny/llada", PROBLEMS[0], external=True)


def check_wheel(session: nox.Session, wheel: Path) -> None:
    """Refuse a wheel with anything but its one package, or without its type marker or its checkpoints."""
    package = wheel.name.split("-")[0]
    names = zipfile.ZipFile(wheel).namelist()
    strangers = [name for name in names if name.split("/")[0].split("-")[0] != package]
    if strangers:
        session.error(f"{wheel.name} holds files of others: {strangers}")
    wanted = [f"{package}/py.typed"]
    if package == "diffulex_tiny":
        checkpoints = ROOT / "plugins/diffulex_tiny/src"
        wanted += [
            path.relative_to(checkpoints).as_posix()
            for path in checkpoints.glob("diffulex_tiny/checkpoints/**/*")
            if path.is_file() and path.suffix != ".pyc"
        ]
    missing = [name for name in wanted if name not in names]
    if missing:
        session.error(f"{wheel.name} lacks {missing}")
