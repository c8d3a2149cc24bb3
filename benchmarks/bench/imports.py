"""How long a user waits before anything happens: an import, and a listing of plugins, each in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from benchmarks.bench.turns import Spread

CODE: Mapping[str, str] = MappingProxyType(
    {
        "import diffulex_core": "import diffulex_core",
        "diffulex plugins list": "from diffulex_core.cli.app import main; main(['plugins', 'list'])",
    }
)
_TELL = "\nimport sys; print('torch' in sys.modules, file=sys.stderr)"


def measure_imports(rounds: int = 5) -> dict[str, Any]:
    """Seconds of each, interpreter start included, beside those of an interpreter that does nothing."""
    seconds: dict[str, list[float]] = {"python": [], **{name: [] for name in CODE}}
    torch: dict[str, bool] = {}
    for _ in range(rounds + 1):
        seconds["python"].append(_run("pass")[0])
        for name, code in CODE.items():
            spent, told = _run(_ended(code))
            seconds[name].append(spent)
            torch[name] = told.splitlines()[-1] == "True"
    medians = {name: Spread.of(values[1:]) for name, values in seconds.items()}  # the first one fills the disk's cache
    return {
        name: {"median": spread.median, "low": spread.low, "high": spread.high, "torch": torch.get(name, False)}
        for name, spread in medians.items()
    }


def _ended(code: str) -> str:
    """Code that says at its end whether torch was imported, also when it leaves the interpreter."""
    lines = "\n".join(f"    {line}" for line in code.splitlines())
    return f"try:\n{lines}\nexcept SystemExit:\n    pass{_TELL}"


def _run(code: str) -> tuple[float, str]:
    # What is installed has been compiled, so the first round may keep what it compiles, whatever the environment says.
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    began = time.perf_counter()
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True, env=environ)
    return time.perf_counter() - began, done.stderr
