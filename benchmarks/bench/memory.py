"""The most memory that a process had at once.

Linux hands `ru_maxrss` on from a process to those that it starts, so that all of them seem as large as the largest of
their ancestors; the kernel's own mark of an address space begins anew with each program.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_rss(process: int | None = None) -> int:
    """Bytes, since the process began or `forget_peak` was called; 0 where it is not known (any more).

    Args:
        process: its id; None = this one.
    """
    try:
        status = Path(f"/proc/{process or 'self'}/status").read_text()
    except OSError:
        if process is not None:
            return 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # a process that has ended, and that nobody has asked about, has no memory


def forget_peak() -> None:
    """Begin anew with what this process has now, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
