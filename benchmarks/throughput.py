"""Throughput of 16 problems in one batch against the same problems one at a time, interleaved, medians with spread.

Run: python benchmarks/throughput.py [--rounds N] [--json FILE]. Same weights, same prompts, same tokens out (checked).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from interleaved import measure, record, show

from diffulex_core.engine import Diffulex
from diffulex_core.sampling_params import SamplingParams
from diffulex_tiny import problems

COUNT = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args()
    prompts = [problem.prompt for problem in problems.problems(2, "eval", COUNT)]
    greedy = SamplingParams(temperature=0.0, max_tokens=32)
    with Diffulex("tiny/llada", enable_prefix_caching=False) as engine:

        def batched() -> list[tuple[int, ...]]:
            return [output.token_ids for output in engine.generate(prompts, greedy)]

        def one_by_one() -> list[tuple[int, ...]]:
            return [engine.generate(prompt, greedy)[0].token_ids for prompt in prompts]

        contenders: dict[str, Callable[[], list[tuple[int, ...]]]] = {"one batch": batched, "one at a time": one_by_one}
        answers = {name: run() for name, run in contenders.items()}
        assert answers["one batch"] == answers["one at a time"], "the batch changed an answer"
        tokens = sum(map(len, answers["one batch"]))
        seconds = measure(contenders, arguments.rounds)
    medians = show(f"{COUNT} problems", seconds, tokens, base="one at a time")
    if arguments.json is not None:
        record(arguments.json, seconds, problems=COUNT, tokens=tokens, ratio_median=medians["one batch"])


if __name__ == "__main__":
    main()
