"""The project's chores: `python -m nox` runs lint, types and tests; `python -m nox -l` lists all sessions."""

from __future__ import annotations

import json
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
KINDS = ("family", "strategy", "backend")
DATA = {
    "diffulex_core": (ROOT / "src", "diffulex_core/_template/**/*"),
    "diffulex_serve": (ROOT / "plugins/diffulex_serve/src", "diffulex_serve/page/assets/**/*"),
    "diffulex_tiny": (ROOT / "plugins/diffulex_tiny/src", "diffulex_tiny/checkpoints/**/*"),
}
"""Files that are no modules, by the package that ships them: where they stand, and which they are."""
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
    # Where Python is told not to keep what it compiles, every process that a test starts compiles everything again.
    env = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    session.run("python", "-m", "pytest", *(session.posargs or fast), env=env)


@nox.session
def kernels(session: nox.Session) -> None:
    """All tests of the Triton kernels in Triton's interpreter, the checks of those that then run on a CPU, and for
    which GPUs all of them compile."""
    session.install("-r", "requirements-dev.txt")
    files = sorted(str(path) for path in (ROOT / "tests/kernels").glob("on_*.py"))
    interpreted = {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    session.run("python", "-m", "pytest", "-q", *(session.posargs or files), env=interpreted)
    if not session.posargs:
        session.run("python", "-m", "pytest", "-q", "tests/core/test_compiled_kernels.py", env={"OMP_NUM_THREADS": "1"})


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
    """mypy --strict on sources and scaffolds; mypy and pyright on plugins, right ones and ones that are wrong."""
    session.install("-r", "requirements-dev.txt")
    session.run("mypy", "--strict")
    session.run("mypy", "--strict", "tests/typing")
    session.run("pyright", "-p", "tests/typing")
    scaffolds = Path(session.create_tmp()).resolve() / "scaffolds"
    shutil.rmtree(scaffolds, ignore_errors=True)
    for kind in KINDS:
        session.run("diffulex", "plugins", "new", kind, "--kind", kind, "--dir", str(scaffolds), silent=True)
        folder = scaffolds / f"diffulex-{kind}"
        session.run("mypy", "--strict", str(folder / "src"), str(folder / "tests"))


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

    binaries = clean_environment(session, TORCH, *map(str, built))
    python = str(binaries / "python")
    # A directory without sources, so that nothing but the wheels can be imported.
    with session.chdir(binaries):
        session.run(str(binaries / "diffulex"), "plugins", "list", external=True)
        session.run(python, "-c", "from diffulex import Diffulex, SamplingParams; print(Diffulex)", external=True)
        session.run(str(binaries / "diffulex"), "generate", "--model", "tiny/llada", PROBLEMS[0], external=True)


@nox.session
def thirdparty(session: nox.Session) -> None:
    """As a stranger: core from its wheel, scaffolded plugins, their checks, and plugins that are broken or quarrel."""
    target = Path(session.create_tmp()).resolve() / "wheels"
    shutil.rmtree(target, ignore_errors=True)
    session.install("attrs", "build")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(target), ".", silent=True)
    (wheel,) = target.glob("*.whl")
    check_wheel(session, wheel)
    binaries = clean_environment(session, TORCH, f"{wheel}[testing]")
    session.run("python", "-m", "tests.thirdparty.proof", str(binaries), env={"OMP_NUM_THREADS": "1"})


@nox.session
def tutorials(session: nox.Session) -> None:
    """The tutorials to the letter, conformance checks included."""
    session.install("-r", "requirements-dev.txt")
    arguments = session.posargs or ("-q", "tests/test_docs_tutorials.py", "tests/thirdparty")
    session.run("python", "-m", "pytest", *arguments, env={"OMP_NUM_THREADS": "1"})


@nox.session
def browser(session: nox.Session) -> None:
    """The server's page in a real Chromium; `-- picture` takes docs/serving.png instead."""
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        session.skip("There is no Chromium, so NOTHING of the page was tested. `apt-get install chromium` brings one.")
    session.install("-r", "requirements-dev.txt")
    session.install("-e", "plugins/diffulex_serve[browser]")
    folder = ROOT / "plugins/diffulex_serve/tests/browser"
    if session.posargs == ["picture"]:
        session.run("python", str(folder / "picture.py"), str(ROOT / "docs/serving.png"))
        return
    arguments = session.posargs or ("-q", *map(str, sorted(folder.glob("on_*.py"))))
    session.run("python", "-m", "pytest", *arguments, env={"OMP_NUM_THREADS": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the engine against others on this machine, which must be idle, and write docs/performance.md."""
    session.install("-r", "requirements-dev.txt")
    session.run("python", "-m", "benchmarks.bench", "run", *session.posargs)
    if "--smoke" in session.posargs:
        return
    session.run("python", "-m", "benchmarks.bench", "anatomy")
    session.run("python", "-m", "benchmarks.host", "--json", "benchmarks/results/host.json")
    session.run("python", "-m", "benchmarks.bench", "render")


@nox.session
def load(session: nox.Session) -> None:
    """A server under load and under attack; `-- --only hostile schema` for a part, `-- --seconds 10` for less."""
    session.install("-r", "requirements-dev.txt", "schemathesis>=4.4")
    session.run("python", "-m", "benchmarks.serve_load", "run", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def audit(session: nox.Session) -> None:
    """Ask the advisory service about everything that the server installs; an error where it cannot be asked."""
    session.install("pip-audit>=2.9")
    folder = Path(session.create_tmp()).resolve()
    resolved, pinned = folder / "resolved.json", folder / "pinned.txt"
    wanted = (TORCH, "-e", ".", "-e", "plugins/diffulex_serve")
    resolve = ("install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(resolved), *wanted)
    session.run("python", "-m", "pip", *resolve)
    wheels = [each["metadata"] for each in json.loads(resolved.read_text())["install"]]
    # Advisories are about released versions: those of a build, as of torch for the CPU, are not told apart.
    lines = sorted(f"{each['name']}=={each['version'].partition('+')[0]}" for each in wheels)
    pinned.write_text("".join(f"{line}\n" for line in lines if not line.startswith("diffulex-")))
    told = folder / "told.json"
    told.unlink(missing_ok=True)
    # --strict: what the service does not know is an error, as is a service that does not answer; then nothing is told.
    ask = ("pip-audit", "--strict", "--no-deps", "--disable-pip", "--requirement", str(pinned))
    session.run(*ask, "--format", "json", "--output", str(told), *session.posargs, success_codes=[0, 1])
    if not told.exists():
        session.error(
            "NOTHING WAS AUDITED: the advisory service could not be asked, or does not know a package; see above."
        )
    audited = json.loads(told.read_text())["dependencies"]
    found = [f"{each['name']} {each['version']}: {one['id']}" for each in audited for one in each["vulns"]]
    if found:
        session.error("Known vulnerabilities: " + ", ".join(found))
    session.log(f"No advisory is known about any of {len(audited)} packages.")


@nox.session
def mutants(session: nox.Session) -> None:
    """Every check on every broken implementation that docs/kill-table.md lacks; `-- --afresh` for all there are."""
    session.install("-r", "requirements-dev.txt")
    arguments = ("--jobs", "2", *session.posargs)
    session.run("python", "-m", "tests.conformance.kill_table", *arguments, env={"OMP_NUM_THREADS": "1"})


def clean_environment(session: nox.Session, *requirements: str) -> Path:
    """A fresh environment with nothing but these packages; returns the directory of its programs."""
    clean = Path(session.create_tmp()).resolve() / "clean"
    shutil.rmtree(clean, ignore_errors=True)
    session.run("python", "-m", "venv", str(clean))
    binaries = clean / ("Scripts" if (clean / "Scripts").exists() else "bin")
    session.run(str(binaries / "python"), "-m", "pip", "install", "--quiet", *requirements, external=True)
    return binaries


def check_wheel(session: nox.Session, wheel: Path) -> None:
    """Refuse a wheel that holds anything but its own files, or lacks its type marker or its data."""
    package = wheel.name.split("-")[0]
    names = zipfile.ZipFile(wheel).namelist()
    beside = ["_diffulex_pytest.py"] if package == "diffulex_core" else []
    strangers = [name for name in names if name.split("/")[0].split("-")[0] != package and name not in beside]
    if strangers:
        session.error(f"{wheel.name} holds files of others: {strangers}")
    wanted = [f"{package}/py.typed", *beside]
    if package in DATA:
        sources, pattern = DATA[package]
        wanted += [
            path.relative_to(sources).as_posix()
            for path in sources.glob(pattern)
            if path.is_file() and path.suffix != ".pyc"
        ]
    missing = [name for name in wanted if name not in names]
    if missing:
        session.error(f"{wheel.name} lacks {missing}")
