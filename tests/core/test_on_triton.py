"""The Triton kernels, interpreted on the CPU: the quick tests of `tests/kernels`, in a process of their own.

Triton decides when kernels are defined whether they are compiled or interpreted, so that these tests cannot run beside
the others. `nox -s kernels` runs all of them; where there is a GPU, `pytest tests/kernels/on_*.py` runs them on it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted(str(file) for file in (ROOT / "tests/kernels").glob("on_*.py"))


def test_kernels_do_what_their_twins_do() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, *FILES], cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
