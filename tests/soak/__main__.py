"""The soak: random requests on random engines, case after case, for a while. Run by `nox -s soak`.

A failure prints the command that repeats it.
"""

from __future__ import annotations

import argparse
import gc
import logging
import resource
import sys
import time
from collections import Counter
from random import Random

import torch
from rich.console import Console

from tests.integration.matrix import CASES, Case, Checkpoints
from tests.integration.turmoil import Tally, turmoil

MOST_GROWTH = 300
"""MiB that the process may grow by after every case ran once; caches of the libraries below take some."""


def alive() -> Counter[str]:
    """Objects of this project, and tensors, by type."""
    gc.collect()
    kinds = Counter[str]()
    for thing in gc.get_objects():
        kind = type(thing)
        if str(kind.__module__).startswith("diffulex") or kind is torch.Tensor:
            kinds[f"{kind.__module__}.{kind.__qualname__}"] += 1
    return kinds


def resident() -> float:
    """The most memory that the process has held so far, in MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def play(case: Case, checkpoints: Checkpoints, seed: int, number: int, requests: int) -> Tally:
    """One round of one case; a function of its arguments alone."""
    return turmoil(case, checkpoints, Random(f"{seed} {number} {case}"), requests=requests)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="stop after so long (default: 10)")
    parser.add_argument("--rounds", type=int, default=None, help="stop after so many rounds over all cases")
    parser.add_argument("--requests", type=int, default=40, help="requests of one case in a round (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of all choices (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first round (default: 0)")
    parser.add_argument("--case", default=None, help="only cases whose name contains this")
    return parser.parse_args()


def main() -> int:
    asked, out = arguments(), Console()
    chosen = [case for case in CASES if asked.case is None or asked.case in str(case)]
    if not chosen:
        out.print(f"no case is called {asked.case!r}; there are: {', '.join(map(str, CASES))}")
        return 2
    torch.set_num_threads(1)
    logging.getLogger("diffulex_core").setLevel(logging.ERROR)
    checkpoints, total, began = Checkpoints(), Tally(), time.monotonic()
    number, held, first_alive = asked.first, 0.0, Counter[str]()
    last = None if asked.rounds is None else asked.first + asked.rounds
    while number != last and (number == asked.first or time.monotonic() - began < 60 * asked.minutes):
        for case in chosen:
            try:
                total.add(play(case, checkpoints, asked.seed, number, asked.requests))
            except Exception:
                again = f"--seed {asked.seed} --first {number} --rounds 1 --requests {asked.requests} --case '{case}'"
                out.print(f"[bold]failed[/bold]; to repeat it: python -m tests.soak {again}", soft_wrap=True)
                raise
        now, left = resident(), alive()
        if number == asked.first:
            held, first_alive = now, left
        grown = {kind: count - first_alive[kind] for kind, count in left.items() if count > first_alive[kind]}
        out.print(
            f"round {number}, {time.monotonic() - began:.0f} s: {total.requests} requests, {total.steps} steps, "
            f"{total.refused} refused, {total.aborted} aborted, {total.preemptions} preemptions, {total.compared} "
            f"compared, {total.cached} slots from the cache, {now:.0f} MiB",
            soft_wrap=True,
        )
        if grown:
            out.print(f"objects that stay behind, by type: {grown}")
            return 1
        if now - held > MOST_GROWTH:
            out.print(f"the process grew from {held:.0f} to {now:.0f} MiB")
            return 1
        number += 1
    out.print(f"ends: {', '.join(sorted(total.reasons))}")
    checkpoints.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
