"""The sparse cache against full passes: forwards, rows, pages and answers, then times of the same work in turns.

Run: python benchmarks/sparse.py [--rounds N] [--json FILE]. Counts are deterministic; times are ratios of interleaved
rounds. `tiny/llada` answers word problems on a canvas, so what the cache costs in quality is seen as well.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from interleaved import measure, record, show
from rich.console import Console
from rich.table import Table

from diffulex_core.engine import Diffulex
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.sparse import SparseConfig
from diffulex_core.types import StepOutput, StepPlan
from diffulex_tiny.problems import problems

PROBLEMS, PAGE, BLOCK, CANVAS = 16, 8, 8, 32
CACHES: Mapping[str, SparseConfig | None] = {
    "dense": None,
    "ratio 1": SparseConfig(retention_ratio=1.0),
    "ratio 0.7": SparseConfig(retention_ratio=0.7),
    "ratio 0.5": SparseConfig(retention_ratio=0.5),
    "ratio 0.3": SparseConfig(retention_ratio=0.3),
    "0.7 by head": SparseConfig(retention_ratio=0.7, head_select=True),
    "0.7 anew": SparseConfig(retention_ratio=0.7, refresh_every=3),
}
FEW_PAGES, LONG_PROMPT, LONG_CANVAS, MANY = 90, 112, 32, 20
"""Of the second measurement: requests that do not all fit into the pages."""


@attrs.define
class Counts:
    """What steps cost.

    Attributes:
        forwards: steps of the engine.
        rows, head_rows: through the network, and through its head.
        used: pages that requests had during each step.
        kept: pages that they had after it.
        most_at_once: requests of a step.
    """

    forwards: int = 0
    rows: int = 0
    head_rows: int = 0
    used: list[int] = attrs.field(factory=list)
    kept: list[int] = attrs.field(factory=list)
    most_at_once: int = 0
    _holds: dict[int, int] = attrs.field(factory=dict)

    def take(self, plan: StepPlan, output: StepOutput) -> None:
        """Count a step."""
        for request in plan.ended:
            self._holds.pop(request, None)
        before = dict(self._holds)
        for window in plan.windows:
            held, table = window.span.held, len(window.page_table)
            before[window.request_id] = table
            self._holds[window.request_id] = table if held is None else -(-held // PAGE)
        self.forwards += 1
        self.rows += plan.rows
        self.head_rows += output.head_rows
        self.used.append(sum(before.values()))
        self.kept.append(sum(self._holds.values()))
        self.most_at_once = max(self.most_at_once, len(plan.windows))

    def facts(self) -> dict[str, float]:
        """As they are written down."""
        return {
            "forwards": self.forwards,
            "rows": self.rows,
            "head_rows": self.head_rows,
            "peak_pages": max(self.used),
            "mean_pages": round(statistics.mean(self.kept), 2),
            "at_once": self.most_at_once,
        }


def serve(
    engine: Diffulex, prompts: Sequence[Any], params: SamplingParams
) -> tuple[list[tuple[int, ...]], list[str], dict[str, float]]:
    """Tokens and texts of all prompts in one batch, and what that cost."""
    counts = Counts()
    with engine.stream(prompts, params) as generation:
        while not generation.done:
            result = generation.advance()
            if result.plan is not None and result.output is not None:
                counts.take(result.plan, result.output)
        answers = list(generation.outputs)
    return [answer.token_ids for answer in answers], [answer.text for answer in answers], counts.facts()


def word_problems(caches: Mapping[str, SparseConfig | None] = CACHES) -> dict[str, dict[str, float]]:
    """Counts and right answers of 16 unseen problems in one batch, for each way of caching."""
    asked = list(problems(2, "eval", PROBLEMS))
    results: dict[str, dict[str, float]] = {}
    dense: list[tuple[int, ...]] = []
    with engine_of_problems() as engine:
        for name, cache in caches.items():
            tokens, texts, facts = serve(engine, [each.prompt for each in asked], params_of(cache))
            dense = dense or tokens
            facts["right"] = sum(text == each.answer for text, each in zip(texts, asked, strict=True))
            facts["same"] = sum(mine == theirs for mine, theirs in zip(tokens, dense, strict=True))
            results[name] = facts
    return results


def few_pages(caches: Mapping[str, SparseConfig | None] = CACHES) -> dict[str, dict[str, float]]:
    """Counts of 20 long requests over pages that hold five of them."""
    prompts = [[(7 * at * at + 13 * at + 31 * salt) % 90 + 5 for at in range(LONG_PROMPT)] for salt in range(MANY)]
    results = {}
    for name, cache in caches.items():
        with engine_of_problems(num_pages=FEW_PAGES) as engine:
            results[name] = serve(engine, prompts, params_of(cache, LONG_CANVAS, BLOCK))[2]
    return results


def engine_of_problems(**settings: Any) -> Diffulex:
    """tiny/llada on canvases."""
    given = {"block_size": 8, "page_size": PAGE, "num_pages": 1024, "max_num_batched_tokens": 16384, **settings}
    return Diffulex("tiny/llada", decoding_strategy="llada_canvas", **given)


def params_of(cache: SparseConfig | None, length: int = CANVAS, block: int = BLOCK) -> SamplingParams:
    """A greedy canvas of which one position is decided in each step, to its end."""
    return SamplingParams(
        temperature=0.0, ignore_eos=True, gen_length=length, steps=length, block_length=block, sparse=cache
    )


def times(rounds: int) -> tuple[Mapping[str, list[float]], dict[str, float]]:
    """Seconds of the 16 problems in one batch, and how much faster than the dense path each way is."""
    prompts = [each.prompt for each in problems(2, "eval", PROBLEMS)]
    with engine_of_problems() as engine:

        def way(cache: SparseConfig | None) -> Callable[[], object]:
            return lambda: engine.generate(prompts, params_of(cache))

        contenders = {name: way(cache) for name, cache in CACHES.items()}
        seconds = measure(contenders, rounds)
    return seconds, show(f"{PROBLEMS} problems", seconds, PROBLEMS * CANVAS, base="dense")


def print_counts(title: str, results: Mapping[str, Mapping[str, float]]) -> None:
    """A table of one measurement."""
    columns = list(next(iter(results.values())))
    table = Table(title=title, title_justify="left")
    for column in ("", *columns):
        table.add_column(column.replace("_", " "), justify="right" if column else "left")
    for name, facts in results.items():
        table.add_row(name, *(f"{facts[column]:g}" for column in columns))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args()
    solved, fitted = word_problems(), few_pages()
    print_counts(f"{PROBLEMS} word problems in one batch", solved)
    print_counts(f"{MANY} requests of {LONG_PROMPT + LONG_CANVAS} tokens over {FEW_PAGES} pages of {PAGE}", fitted)
    seconds, medians = times(arguments.rounds)
    if arguments.json is not None:
        record(arguments.json, seconds, word_problems=solved, few_pages=fitted, faster_than_dense_median=medians)


if __name__ == "__main__":
    main()
