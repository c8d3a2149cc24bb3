"""Forwards and computed rows per generated token on the parity vectors, next to what Diffulex 0.1 spent.

Run: python benchmarks/nfe.py [--json FILE]. Counts are deterministic; nothing here is a time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from diffulex_core.engine import Diffulex
from diffulex_core.sampling_params import SamplingParams

PARITY = Path(__file__).parents[1] / "tests" / "parity"
RECORDED_WITH: dict[str, dict[str, Any]] = {"sdar-b4": {"accept_threshold": 0.95}}
"""What a recorder did whatever the configuration in its file says."""


def measure(recording: dict[str, Any], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each case: tokens equal or not, forwards, rows and head rows, ours and recorded."""
    rows = []
    for case in recording["cases"]:
        params = SamplingParams(**recording["sampling"], max_tokens=len(case["tokens"]))
        options = {**recording["config"], **settings, "num_pages": 64}
        with Diffulex(PARITY / "checkpoints" / recording["checkpoint"], **options) as engine:
            outputs = engine.generate(case["prompt"], params)
        [answer] = outputs
        rows.append(
            {
                "prompt": len(case["prompt"]),
                "tokens": len(case["tokens"]),
                "same_tokens": list(answer.token_ids) == case["tokens"],
                "forwards": answer.nfe,
                "reference_forwards": case["reference_forwards"],
                "rows": sum(step.rows for step in answer.trajectory),
                "reference_rows": case["reference_rows"],
                "head_rows": outputs.head_rows,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    arguments = parser.parse_args()
    recordings = {path.stem: json.loads(path.read_text()) for path in sorted(PARITY.glob("vectors/*.json"))}
    results = {
        name: measure(recording, RECORDED_WITH.get(name, {}))
        for name, recording in recordings.items()
        if "config" in recording  # the others are of samplers without an engine, which counted nothing
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    table = Table(title="Per generated token; Diffulex 0.1 in brackets", title_justify="left")
    for column in ("vector", "prompt", "tokens", "same", "forwards", "rows", "head rows"):
        table.add_column(column, justify="left" if column == "vector" else "right")
    for name, rows in results.items():
        for row in rows:
            count = row["tokens"]
            table.add_row(
                name,
                str(row["prompt"]),
                str(count),
                "yes" if row["same_tokens"] else "NO",
                f"{row['forwards'] / count:.3f} ({row['reference_forwards'] / count:.3f})",
                f"{row['rows'] / count:.2f} ({row['reference_rows'] / count:.2f})",
                f"{row['head_rows'] / count:.2f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
