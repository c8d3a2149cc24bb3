"""The machine that a measurement ran on, and whether anything else ran on it."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import attrs
import psutil

T = TypeVar("T")
MOST_OTHERS = 0.05
"""Share of the machine's CPU time that others may take before a measurement is of a busy machine."""
_LOOK = 3.0
"""Seconds that a machine must be idle for before it counts as such."""
_CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")


class BusyMachine(RuntimeError):
    """Something else runs on the machine."""


@attrs.frozen(kw_only=True)
class Clock:
    """A reading: seconds of CPU time that all cores gave to anybody, and that this process tree got; `wall` seconds."""

    wall: float
    everybody: float
    own: float

    def others_until(self, later: Clock, cores: int) -> float:
        """Share of the machine's time between two readings that went to others, in [0, 1]."""
        capacity = (later.wall - self.wall) * cores
        others = (later.everybody - self.everybody) - (later.own - self.own)
        return min(max(others / capacity, 0.0), 1.0) if capacity > 0 else 0.0


def read_clock(now: Callable[[], float]) -> Clock:
    """Read it; children of this process count as its own, and so do those that have ended, which their parent keeps."""
    times = psutil.cpu_times()
    everybody = sum(times) - times.idle - _waiting(times)
    here = psutil.Process()
    own = 0.0
    for process in (here, *here.children(recursive=True)):
        try:
            spent = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        own += spent.user + spent.system + spent.children_user + spent.children_system
    return Clock(wall=now(), everybody=everybody, own=own)


def check_idle(others: float, *, busy_ok: bool) -> bool:
    """Whether results are citable.

    Args:
        others: share of the machine's time that went to others while nothing of ours ran.
        busy_ok: go on with results that are not.
    Raises:
        BusyMachine: they would not be.
    """
    if others <= MOST_OTHERS:
        return True
    if busy_ok:
        return False
    raise BusyMachine(
        f"Other processes take {others:.0%} of this machine. Stop them and try again, or pass --busy-ok, which marks "
        "the results as not citable."
    )


def wait_until_idle(*, seconds: float, now: Callable[[], float], sleep: Callable[[float], None]) -> bool:
    """Wait until nothing else runs for a few seconds; False when `seconds` went by first."""
    end = now() + seconds
    while now() < end:
        before = read_clock(now)
        sleep(_LOOK)
        if before.others_until(read_clock(now), psutil.cpu_count() or 1) <= MOST_OTHERS:
            return True
    return False


def patiently(run: Callable[[], T], *, tries: int, wait: Callable[[], object], tell: Callable[[str], object]) -> T:
    """Measure again, after a wait, what a busy machine spoiled.

    Args:
        tries: in all; what the last one raises is raised.
        wait: until the machine is idle.
        tell: told of each spoiled try.
    Raises:
        BusyMachine: all tries were spoiled.
    """
    for _ in range(tries - 1):
        try:
            return run()
        except BusyMachine as error:
            tell(f"{error} Trying again when it is idle.")
            wait()
    return run()


def describe(threads: int) -> dict[str, Any]:
    """The machine and the software, as plain data."""
    flags = _cpu_line("flags").split() or _cpu_line("Features").split()
    return {
        "cpu": _cpu_line("model name") or platform.processor() or platform.machine(),
        "family": " ".join(f"{name} {_cpu_line(name)}" for name in ("cpu family", "model", "stepping")),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "cores": psutil.cpu_count(logical=True),
        "threads": threads,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "numpy")},
    }


def commit(root: Path) -> str:
    """The checked-out commit, with `+` when tracked files differ from it; `unknown` outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(("git", *arguments), cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(git("status", "--porcelain", "-uno", *_SOURCES))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


_SOURCES = ("--", "src", "plugins", "benchmarks")


def _waiting(times: Any) -> float:
    """Time in which a core waited for a disk, and time that is counted in another column already."""
    extra = 0.0
    for name in ("iowait", "guest", "guest_nice"):
        if name in times._fields:
            extra += times[times._fields.index(name)]
    return extra


def _cpu_line(name: str) -> str:
    try:
        lines: Sequence[str] = _CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
