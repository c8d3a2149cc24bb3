"""The whole matrix, every check on every mutant: `python -m tests.conformance.kill_table [--out FILE]`.

Prints who catches whom. Exit status 1 when a mutant survives the check that it was made for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from diffulex_core.testing.catalogue import CHECKS
from diffulex_core.testing.effort import Effort
from tests.conformance.mutants import MUTANTS


def main() -> int:
    """Run the matrix; 1 when a mutant survives its check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table as Markdown")
    out: Path | None = parser.parse_args().out
    rows = []
    for mutant in track(MUTANTS, "mutants"):
        killers = [check for check in CHECKS if mutant.is_killed_by(check, Effort(tier=check.tier, shrinks=False))]
        others = ", ".join(check.name for check in killers if check is not mutant.check)
        rows.append((mutant.check.name, mutant.name, mutant.check in killers, others))
    table = Table("check", "mutant", "caught", "also caught by")
    for name, what, caught, others in rows:
        table.add_row(name, what, f"[{'green' if caught else 'red'}]{_word(caught)}[/]", others)
    Console().print(table)
    killed = sum(caught for _, _, caught, _ in rows)
    total = f"{killed} of {len(rows)} mutants caught by the check they were made for; {len(CHECKS)} checks."
    print(total)
    if out is not None:
        lines = ["| Check | Mutant | Caught | Also caught by |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {name} | {what} | {'yes' if caught else 'NO'} | {others} |" for name, what, caught, others in rows
        ]
        out.write_text("\n".join([*lines, "", total, ""]))
    return 0 if killed == len(rows) else 1


def _word(caught: bool) -> str:
    return "yes" if caught else "NO"


if __name__ == "__main__":
    sys.exit(main())
