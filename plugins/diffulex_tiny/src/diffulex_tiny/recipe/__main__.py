"""Train a checkpoint, export it into this package, and measure it: `python -m diffulex_tiny.recipe llada2`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from diffulex_tiny.recipe import dream, dream_export, export, gemma, gemma_export, llada2, llada2_export, loop, train
from diffulex_tiny.recipe.measure import measure


def make_llada(workdir: Path, out: Path) -> None:
    export.export(train.train(train.Recipe(), workdir), out)


def make_llada2(workdir: Path, out: Path) -> None:
    recipe = llada2.Recipe()
    training = llada2.Training(recipe)
    loop.train(training, recipe.schedule, workdir)
    llada2_export.export(training.network, out)


def make_dream(workdir: Path, out: Path) -> None:
    recipe = dream.Recipe()
    training = dream.Training(recipe)
    loop.train(training, recipe.schedule, workdir)
    dream_export.export(training.network, out)


def make_gemma(workdir: Path, out: Path) -> None:
    recipe = gemma.Recipe()
    training = gemma.Training(recipe)
    loop.train(training, recipe.schedule, workdir)
    gemma_export.export(training.network, out)


RECIPES: Mapping[str, Callable[[Path, Path], None]] = MappingProxyType(
    {"llada": make_llada, "llada2": make_llada2, "dream": make_dream, "gemma": make_gemma}
)
"""Name of a checkpoint -> what trains it, resuming in the first folder, and writes it into the second."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m diffulex_tiny.recipe", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--workdir", type=Path, default=Path(".work/tiny"), help="where the training state is kept")
    parser.add_argument("--out", type=Path, help="checkpoint folder; default: inside the package")
    parser.add_argument("--problems", type=int, default=500, help="unseen problems of each task to measure on")
    arguments = parser.parse_args()
    out = arguments.out or Path(str(files("diffulex_tiny"))) / "checkpoints" / arguments.name
    RECIPES[arguments.name](arguments.workdir / arguments.name, out)
    measure(arguments.name, out, arguments.problems)


if __name__ == "__main__":
    main()
