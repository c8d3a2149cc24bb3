"""The whole matrix, every check on every mutant: `python -m tests.conformance.kill_table` writes docs/kill-table.md.

Rows that the page has already are kept, so that an interrupted run goes on where it was, and a new mutant costs its own
row only; `--afresh` runs them again. `--own` asks of each mutant the check alone that it was made for, which is quick.
Exit status 1 when a mutant survives the check that it was made for.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import torch

from diffulex_core.testing.catalogue import CHECKS
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.effort import Effort
from tests.conformance.kill_page import PAGE, Row, read, wanted, write
from tests.conformance.mutant import Mutant
from tests.conformance.mutants import MUTANTS

RENEWED = 40
"""Mutants after which a process is replaced by a fresh one, as broken implementations may leave things behind."""


def main() -> int:
    """Run what is asked for and missing; 1 when a mutant survives its check."""
    options = _parser().parse_args()
    chosen = _chosen(options.only, options.slice)
    kept = {} if options.afresh else {row.key: row for row in read(options.page)}
    missing = [mutant for mutant in chosen if _is_wanting(kept.get((mutant.check.name, mutant.name)), options.own)]
    print(f"{len(chosen)} mutants, {len(chosen) - len(missing)} of them on the page already", flush=True)
    rows = {key: row for key, row in kept.items() if key in set(wanted())}
    write(options.page, rows)
    survivors, begin = list[str](), time.monotonic()
    for number, row in enumerate(_run(missing, own=options.own, jobs=options.jobs), start=1):
        rows[row.key] = row
        write(options.page, rows)
        if not row.caught:
            survivors.append(f"{row.check}: {row.mutant}")
        word = "caught" if row.caught else "SURVIVES"
        others = f", and by {len(row.others)} other checks" if row.others else ""
        seconds = time.monotonic() - begin
        print(f"[{number}/{len(missing)}, {seconds:.0f} s] {word} {row.check}: {row.mutant}{others}", flush=True)
    print(f"{len(missing) - len(survivors)} of {len(missing)} mutants caught by the check they were made for.")
    for each in survivors:
        print(f"SURVIVES {each}")
    return 1 if survivors else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE, help="the table; docs/kill-table.md if nothing is said")
    parser.add_argument("--jobs", type=int, default=1, help="processes that work at the same time")
    parser.add_argument("--only", default="", help="mutants of the checks whose names contain this")
    parser.add_argument("--slice", type=_part, default=(1, 1), metavar="K/N", help="the K-th of N parts of the mutants")
    parser.add_argument("--own", action="store_true", help="ask only the check that each mutant was made for")
    parser.add_argument("--afresh", action="store_true", help="also what the page has already")
    return parser


def _part(text: str) -> tuple[int, int]:
    place, _, parts = text.partition("/")
    if not 1 <= int(place) <= int(parts):
        raise ValueError(f"{text} is no part of a whole")
    return int(place), int(parts)


def _chosen(only: str, part: tuple[int, int]) -> list[Mutant]:
    place, parts = part
    return [mutant for mutant in MUTANTS if only in mutant.check.name][place - 1 :: parts]


def _is_wanting(row: Row | None, own: bool) -> bool:
    return row is None or not row.caught or (row.others is None and not own)


def _run(mutants: Sequence[Mutant], *, own: bool, jobs: int) -> Iterator[Row]:
    """Their rows, as they come."""
    numbers = [MUTANTS.index(mutant) for mutant in mutants]
    if jobs == 1:
        yield from map(partial(_row, own=own), numbers)
        return
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=fresh, max_tasks_per_child=RENEWED) as pool:
        for done in as_completed([pool.submit(_row, number, own=own) for number in numbers]):
            yield done.result()


def _row(number: int, *, own: bool) -> Row:
    mutant = MUTANTS[number]
    others = None if own else tuple(each.name for each in CHECKS if each is not mutant.check and _catches(each, mutant))
    return Row(check=mutant.check.name, mutant=mutant.name, caught=_catches(mutant.check, mutant), others=others)


def _catches(check: AnyCheck, mutant: Mutant) -> bool:
    # Some mutants switch gradients off; the check that looks for it must find them on, whatever ran before.
    with torch.enable_grad():
        return mutant.is_killed_by(check, Effort(tier=check.tier, shrinks=False))


if __name__ == "__main__":
    sys.exit(main())
