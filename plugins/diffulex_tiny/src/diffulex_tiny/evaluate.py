"""How many unseen problems a checkpoint answers exactly, and at how many tokens per forward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs

from diffulex_core.engine import Diffulex
from diffulex_core.plugin import SamplingParams
from diffulex_tiny.problems import LONG_STEPS, Problem

MAX_TOKENS = {"two_step": 32, "long": 128}
"""Room for the answers of each task."""


@attrs.frozen(kw_only=True)
class Score:
    """Result of one evaluation.

    Attributes:
        exact: answers equal to the expected text, character for character, that ended by themselves.
        total: problems asked.
        tpf: mean visible tokens per forward that sampled.
        tpf_total: the same with prefill-only forwards counted.
        nfe: mean forwards per answer.
        throughput: visible tokens per second, all problems in one batch queue.
    """

    exact: int
    total: int
    tpf: float
    tpf_total: float
    nfe: float
    throughput: float

    @property
    def accuracy(self) -> float:
        return self.exact / self.total

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson interval of the accuracy; 95 % at the default `z`."""
        return wilson(self.exact, self.total, z)


def wilson(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson interval of a share; 95 % at the default `z`."""
    p, n = hits / total, total
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)  # the ends are exact but for rounding


def evaluate(
    engine: Diffulex,
    asked: Sequence[Problem],
    *,
    max_tokens: int | None = None,
    seed: int = 0,
    use_tqdm: bool = False,
    **params: Any,
) -> Score:
    """Ask every problem greedily and compare the answers exactly.

    Args:
        max_tokens: None = what suffices for the problems' task.
        seed: of the first problem, for strategies that draw; each further one has the next.
        params: further sampling parameters, such as `thresholds`.
    """
    if max_tokens is None:
        long = any(len(problem.results) >= min(LONG_STEPS) for problem in asked)
        max_tokens = MAX_TOKENS["long" if long else "two_step"]
    sampling = [
        SamplingParams(temperature=0.0, max_tokens=max_tokens, seed=seed + number, **params)
        for number in range(len(asked))
    ]
    outputs = engine.generate([problem.prompt for problem in asked], sampling, use_tqdm=use_tqdm)
    exact = sum(
        output.eos_token_generated and output.text == problem.answer
        for output, problem in zip(outputs, asked, strict=True)
    )
    return Score(
        exact=exact,
        total=len(asked),
        tpf=outputs.tpf,
        tpf_total=outputs.tpf_total,
        nfe=outputs.nfe,
        throughput=outputs.throughput,
    )
