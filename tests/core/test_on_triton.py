"""The Triton kernels, interpreted on the CPU: the tests of `tests/kernels`, each file in a process of its own.

Triton decides when kernels are defined whether they are compiled or interpreted, so that these tests cannot run beside
the others. Where there is a GPU, `pytest tests/kernels/on_*.py` runs them on it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests/kernels").glob("on_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem.removeprefix("on_"))
def test_kernels_do_what_their_twins_do(file: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
