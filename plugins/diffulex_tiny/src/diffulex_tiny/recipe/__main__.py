"""Train a checkpoint, export it into this package, and measure it: `python -m diffulex_tiny.recipe llada`."""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import torch

from diffulex_tiny import problems
from diffulex_tiny.evaluate import evaluate
from diffulex_tiny.recipe.export import export
from diffulex_tiny.recipe.train import Recipe, train

RECIPES = {"llada": Recipe()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m diffulex_tiny.recipe", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--workdir", type=Path, default=Path(".work/tiny"), help="where the training state is kept")
    parser.add_argument("--out", type=Path, help="checkpoint folder; default: inside the package")
    parser.add_argument("--problems", type=int, default=500, help="unseen problems to measure on")
    arguments = parser.parse_args()
    out = arguments.out or Path(str(files("diffulex_tiny"))) / "checkpoints" / arguments.name
    export(train(RECIPES[arguments.name], arguments.workdir / arguments.name), out)
    measure(out, arguments.problems)


def measure(folder: Path, count: int) -> None:
    """Print accuracy and tokens per forward over a range of accept thresholds."""
    from diffulex_core.engine import Diffulex

    torch.set_grad_enabled(False)
    asked = list(problems.problems(1, "eval", count))
    with Diffulex(str(folder)) as engine:
        print("accept  exact   95% interval    TPF   TPF with prefill")
        for threshold in (0.5, 0.7, 0.8, 0.9, 0.95):
            score = evaluate(engine, asked, thresholds={"accept_threshold": threshold})
            low, high = score.interval()
            print(
                f"{threshold:6.2f}  {score.accuracy:6.1%}  {low:.1%} - {high:.1%}  "
                f"{score.tpf:5.2f}  {score.tpf_total:5.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
