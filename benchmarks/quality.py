"""Accuracy against tokens per forward: every way of decoding on the trained checkpoints, over thresholds and sizes.

Run: python -m benchmarks.quality --out FOLDER [--models NAME ...] [--add FILE ...] [--problems N] [--seed N]
[--rounds N] [--quick]. `--add` takes over what earlier runs found, so that models can be run one at a time
and a run can be gone on with.
Writes quality.csv, quality.json, quality.md, quality.png and overview.png. Counts are deterministic; speeds, which
`--rounds` asks for, are medians of interleaved rounds. One thread computes, and its processor's time counts, so that
other programs on the machine hardly matter. What is not there or does not run is named in the JSON record and the
Markdown.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from benchmarks.interleaved import measure
from benchmarks.quality_curves import comparisons, curves
from benchmarks.quality_picture import draw, draw_overview
from benchmarks.quality_results import Edits, EditWatch, Result, Speed, counted, is_right
from benchmarks.quality_sweeps import MODELS, SWEEPS, Settings, Sweep, Trial, trials
from benchmarks.quality_tables import as_csv, as_markdown, row
from rich.console import Console

from diffulex_core.engine import Diffulex
from diffulex_core.errors import DiffulexError
from diffulex_core.outputs import GenerationOutputs
from diffulex_core.sampling_params import SamplingParams
from diffulex_tiny.problems import Problem, problems
from diffulex_tiny.source import TinySource, names

TIMED = 16
"""Problems of a timed round."""
SAVED_EVERY = 10
"""Points between two writings of what there is."""


@attrs.frozen(kw_only=True)
class Asked:
    """What a run covers.

    Attributes:
        models: names of checkpoints, there or not.
        problems, seed: how many unseen problems of each task, and which.
        rounds: of times; 0 = none.
        quick: three values of each sweep.
    """

    models: tuple[str, ...] = MODELS
    problems: int = 500
    seed: int = 1
    rounds: int = 0
    quick: bool = False


@attrs.define
class Run:
    """What came out so far.

    Attributes:
        results: one for each point of each sweep.
        failed: point and message of those that did not run.
    """

    asked: Asked
    results: list[Result] = attrs.field(factory=list)
    failed: list[str] = attrs.field(factory=list)

    def add(self, file: Path) -> None:
        """Take over the results of an earlier run of the same problems.

        Raises:
            ValueError: it asked other problems, a checkpoint has changed since, or it is of another version of this.
        """
        record = json.loads(file.read_text())
        earlier = {name: record["asked"][name] for name in ("problems", "seed", "quick")}
        ours = {name: value for name, value in attrs.asdict(self.asked).items() if name in earlier}
        stale = [name for name, weights in record["checkpoints"].items() if weights != digest(name)]
        if earlier != ours or stale:
            raise ValueError(f"{file} holds results of {earlier}, not of {ours}, or of other checkpoints: {stale}")
        self.failed += record["failed"]
        for fields in record["results"]:
            if fields.keys() != attrs.fields_dict(Result).keys():
                raise ValueError(f"{file} was written by another version of this benchmark; run it again.")
            edits = None if fields["edits"] is None else Edits(**fields["edits"])
            speed = None if fields["speed"] is None else Speed(**fields["speed"])
            self.results.append(Result(**{**fields, "edits": edits, "speed": speed}))

    @property
    def absent(self) -> list[str]:
        """Models that were asked for and are not there."""
        return [name for name in self.asked.models if name not in names()]

    def notes(self) -> Iterator[str]:
        """What was run and what was not, in sentences."""
        ran = ", ".join(dict.fromkeys(f"tiny/{each.model}" for each in self.results)) or "nothing"
        yield f"Run: {ran}, on {self.asked.problems} unseen problems of each task (seed {self.asked.seed})."
        if self.asked.quick:
            yield "Quick: at most three values of each sweep."
        for name in self.absent:
            yield f"Absent: tiny/{name}; none of its sweeps was run."
        known = {*self.asked.models, *(each.model for each in self.results)}
        for name in (name for name in MODELS if name not in known):
            yield f"Not asked for: tiny/{name}."
        yield from (f"Failed: {each}" for each in self.failed)

    def write(self, folder: Path) -> None:
        """All files, of what there is."""
        folder.mkdir(parents=True, exist_ok=True)
        drawn, compared = curves(self.results), comparisons(self.results)
        (folder / "quality.csv").write_text(as_csv(self.results))
        (folder / "quality.md").write_text(as_markdown(self.results, drawn, compared, self.notes()))
        record = {
            "asked": attrs.asdict(self.asked),
            "notes": list(self.notes()),
            "absent": self.absent,
            "failed": self.failed,
            "checkpoints": {name: digest(name) for name in dict.fromkeys(each.model for each in self.results)},
            "machine": {
                "threads": torch.get_num_threads(),
                "machine": platform.machine(),
                "torch": torch.__version__,
            },
            "results": [attrs.asdict(each) for each in self.results],
            "curves": [attrs.asdict(each) for each in drawn],
            "comparisons": [
                {"one": row(each.one), "several": row(each.several), "met": each.met}
                | {"ratio": each.ratio, "ratio_stores": each.ratio_stores, "lost": each.lost}
                for each in compared
            ],
        }
        (folder / "quality.json").write_text(json.dumps(record, indent=1) + "\n")
        if drawn:
            draw(drawn, folder / "quality.png")
            draw_overview(drawn, folder / "overview.png")


def digest(model: str) -> str:
    """SHA-256 of a checkpoint's weights, by which results belong to them."""
    folder = TinySource().resolve(f"tiny/{model}")
    assert folder is not None, "the name has the prefix of this source"
    total = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        total.update(file.read_bytes())
    return total.hexdigest()


def ask(engine: Diffulex, trial: Trial, asked: Sequence[Problem]) -> tuple[GenerationOutputs, Edits | None]:
    """Answer the problems; edits are counted where there may be some."""
    prompts = [each.prompt for each in asked]
    # Strategies that draw do so by the problem's number, whatever the batch.
    params = [SamplingParams(**trial.request, seed=at) for at in range(len(asked))]
    if not trial.sweep.revises:
        return engine.generate(prompts, params), None
    watches = [EditWatch(expected=expected_tokens(engine, each)) for each in asked]
    with engine.stream(prompts, params) as generation:
        for event in generation:
            watches[event.index].see(event.canvas)
        outputs = generation.outputs
    total = Edits()
    for watch in watches:
        total = total.plus(watch.edits)
    return outputs, total


def expected_tokens(engine: Diffulex, problem: Problem) -> list[int]:
    """Token ids of the right answer and the end token behind it."""
    tokenizer = engine.tokenizer
    return [*tokenizer.encode(problem.answer, add_special_tokens=False), tokenizer.eos_token_id]


def result_of(engine: Diffulex, trial: Trial, asked: Sequence[Problem]) -> Result:
    """Run one point."""
    outputs, edits = ask(engine, trial, asked)
    settings = trial.settings
    alone = settings["block_size"] if settings.get("buffer_size") == 1 else None
    return Result(
        model=trial.sweep.model,
        task=trial.task,
        way=trial.sweep.way,
        strategy=settings["decoding_strategy"],
        knob=trial.sweep.knob,
        value=trial.value,
        settings=settings,
        problems=len(asked),
        exact=sum(is_right(answer, each.answer) for answer, each in zip(outputs, asked, strict=True)),
        answer_tokens=min(len(expected_tokens(engine, each)) for each in asked),
        edits=edits,
        **counted(outputs, stores_alone=alone),
    )


def run_model(run: Run, sweeps: Sequence[Sweep], tell: Callable[[str], None]) -> None:
    """Every point of one model's sweeps, but for those that an earlier run found; each is run once.

    Times are taken of all of them, since only those of one run can be compared.
    """
    model = sweeps[0].model
    known = {key_of(each.task, each.settings): each for each in run.results if each.model == model}
    run.results = [each for each in run.results if each.model != model]
    planned = [trial for sweep in sweeps for trial in trials(sweep, quick=run.asked.quick)]
    begin = len(run.results)
    done: list[Trial] = []
    for trial in planned:
        name = f"tiny/{trial.sweep.model}, {trial.task}, {trial.sweep.way}, {trial.sweep.knob} {trial.value:g}"
        key = key_of(trial.task, trial.settings)
        if key not in known:
            asked = list(problems(run.asked.seed, "eval", run.asked.problems, trial.task))
            try:
                with open_engine(trial.sweep.model, trial.engine) as engine:
                    known[key] = result_of(engine, trial, asked)
            except DiffulexError as error:
                run.failed.append(f"{name}: {error}")
                tell(f"{name}: {error}")
                continue
        found = attrs.evolve(known[key], way=trial.sweep.way, knob=trial.sweep.knob, value=trial.value, speed=None)
        run.results.append(found)
        done.append(trial)
        tell(f"{name}: {found.exact} of {found.problems}, TPF {found.tpf:.2f}")
    if run.asked.rounds:
        speeds = speeds_of(done, run.asked)
        for at, trial in enumerate(done, start=begin):
            run.results[at] = attrs.evolve(run.results[at], speed=speeds[key_of(trial.task, trial.settings)])


def speeds_of(done: Sequence[Trial], asked: Asked) -> Mapping[str, Speed]:
    """Speed of each distinct point; those of one task take turns."""
    speeds: dict[str, Speed] = {}
    for task in dict.fromkeys(trial.task for trial in done):
        chosen = {key_of(task, trial.settings): trial for trial in done if trial.task == task}
        few = list(problems(asked.seed, "eval", min(TIMED, asked.problems), task))
        with ExitStack() as stack:
            engines: dict[str, Diffulex] = {}
            for trial in chosen.values():
                name = repr(sorted(trial.engine.items()))
                if name not in engines:
                    engines[name] = stack.enter_context(open_engine(trial.sweep.model, trial.engine))
            contenders = {
                key: contender(engines[repr(sorted(trial.engine.items()))], trial, few) for key, trial in chosen.items()
            }
            tokens = {key: answer() for key, answer in contenders.items()}
            with one_thread():
                seconds = measure(contenders, asked.rounds, clock=time.process_time)
        speeds |= {key: speed_of(tokens[key], seconds[key]) for key in chosen}
    return speeds


@contextmanager
def one_thread() -> Iterator[None]:
    """Without it a process's time is that of all its threads, waiting ones included."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def speed_of(tokens: int, seconds: Sequence[float]) -> Speed:
    """How fast so many tokens came in each round."""
    rates = [tokens / each for each in seconds]
    return Speed(median=statistics.median(rates), lowest=min(rates), highest=max(rates), rounds=len(rates))


def contender(engine: Diffulex, trial: Trial, asked: Sequence[Problem]) -> Callable[[], int]:
    """Answers the problems in one batch and returns how many tokens that were."""
    prompts = [each.prompt for each in asked]
    params = [SamplingParams(**trial.request, seed=at) for at in range(len(asked))]
    return lambda: engine.generate(prompts, params).total_generated_tokens


def key_of(task: str, settings: Settings) -> str:
    """Equal for points of one model that would do the same."""
    return repr((task, sorted(settings.items())))


def open_engine(model: str, options: Settings) -> Diffulex:
    """The engine of a point."""
    return Diffulex(f"tiny/{model}", strict=True, **options)


def asked_by(arguments: Sequence[str] | None) -> tuple[Asked, Path, Sequence[Path]]:
    """What the command line asks for, where results go, and files of results that are there already."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--add", nargs="+", type=Path, default=[], help="quality.json of earlier runs")
    parser.add_argument("--problems", type=int, help="unseen problems of each task; default 500, 24 with --quick")
    parser.add_argument("--seed", type=int, default=1, help="which problems; 1 as on the models' cards")
    parser.add_argument("--rounds", type=int, default=0, help="interleaved rounds of times; default none")
    parser.add_argument("--quick", action="store_true", help="three values of each sweep")
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    if given["problems"] is not None and given["problems"] < 1:
        parser.error("--problems must be at least 1")
    count = given["problems"] or (24 if given["quick"] else 500)
    asked = Asked(
        models=tuple(given["models"]),
        problems=count,
        seed=given["seed"],
        rounds=given["rounds"],
        quick=given["quick"],
    )
    return asked, given["out"], given["add"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 when a point failed, 0 otherwise."""
    asked, folder, earlier = asked_by(arguments)
    console, run = Console(), Run(asked=asked)
    for file in earlier:
        run.add(file)

    def tell(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)
        if len(run.results) % SAVED_EVERY == 0:
            run.write(folder)

    for model in (name for name in asked.models if name not in run.absent):
        run_model(run, [sweep for sweep in SWEEPS if sweep.model == model], tell)
        run.write(folder)
    run.write(folder)
    for note in run.notes():
        console.print(note, markup=False, soft_wrap=True)
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
