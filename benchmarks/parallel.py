"""Throughput of two replicas and of two ranks against one process, interleaved, medians with spread.

Run: python benchmarks/parallel.py [--rounds N] [--json FILE]. Same weights, same prompts, same tokens out (checked).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from interleaved import measure, record, show

from diffulex_core.engine import Diffulex
from diffulex_core.sampling_params import SamplingParams
from diffulex_tiny import problems

COUNT = 64
ONE = "one process"
ENGINES = {ONE: {}, "two replicas": {"data_parallel_size": 2}, "two ranks": {"tensor_parallel_size": 2}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args()
    prompts = [problem.prompt for problem in problems.problems(2, "eval", COUNT)]
    greedy = SamplingParams(temperature=0.0, max_tokens=32)

    def answers(engine: Diffulex) -> list[tuple[int, ...]]:
        return [output.token_ids for output in engine.generate(prompts, greedy)]

    with ExitStack() as engines:
        contenders: dict[str, Callable[[], list[tuple[int, ...]]]] = {
            name: partial(
                answers,
                engines.enter_context(Diffulex("tiny/llada", device="cpu", enable_prefix_caching=False, **sizes)),
            )
            for name, sizes in ENGINES.items()
        }
        wanted, *others = [run() for run in contenders.values()]
        assert all(other == wanted for other in others), "several processes changed an answer"
        tokens = sum(map(len, wanted))
        seconds = measure(contenders, arguments.rounds)
    medians = show(f"{COUNT} problems in one batch", seconds, tokens, base=ONE)
    if arguments.json is not None:
        record(arguments.json, seconds, problems=COUNT, tokens=tokens, ratio_medians=medians)


if __name__ == "__main__":
    main()
