"""The Triton kernels of the experts, interpreted on the CPU in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.moe_interpreted"],
        cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 0.02), ("float16", 0.003)])
def test_every_row_is_the_weighted_sum_over_its_experts(interpreted: dict[str, Any], dtype: str, bound: float) -> None:
    """Relative to the largest output of the fp32 definition: what lies between the products is rounded to the dtype."""
    assert interpreted["errors"][dtype] < bound


def test_the_interpreter_is_used_where_it_is_named_and_not_otherwise(interpreted: dict[str, Any]) -> None:
    assert (interpreted["named"], interpreted["auto"]) == ("TritonExperts", "TorchExperts")


def test_an_engine_decodes_its_recorded_tokens_with_triton(interpreted: dict[str, Any]) -> None:
    recorded, found = interpreted["decoded"]
    assert found == recorded
