"""`diffulex profile`: where the time of a step goes, as a table and as a trace."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from diffulex_core.cli.config import config_options, read_settings
from diffulex_core.cli.generate import check_preset
from diffulex_core.cli.sampling import given_sampling, prompt_options, read_prompts, sampling_options
from diffulex_core.host import Host

if TYPE_CHECKING:
    from rich.table import Table

    from diffulex_core.engine import Diffulex
    from diffulex_core.profiling.table import ProfileSummary
    from diffulex_core.sampling_params import SamplingParams

KEPT = 100_000
"""Steps of a run whose stage times are kept."""


@click.command("profile")
@prompt_options
@config_options
@click.option("--preset", help="Named settings of the strategy, in place of what is not given; see `plugins show`.")
@sampling_options
@click.option("--forwards", type=click.IntRange(min=1), help="Stop each run after so many steps; default: never.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("profile"),
    show_default=True,
    help="Directory of the files.",
)
@click.option("--name", default="profile", show_default=True, help="First part of the files' names.")
@click.option("--warm-up/--no-warm-up", default=True, help="Run everything once before it is timed.")
@click.option("--json", "machine", is_flag=True, help="Print JSON for machines.")
@click.pass_obj
def profile(
    host: Host,
    /,
    prompts: Sequence[str],
    prompt_file: TextIO | None,
    model: str | None,
    config_file: Path | None,
    settings: Sequence[str],
    preset: str | None,
    forwards: int | None,
    output: Path,
    name: str,
    warm_up: bool,
    machine: bool,
    **sampling: Any,
) -> None:
    """Answer PROMPTS and say where the time went.

    The prompts are answered together, twice: timed as they run, then recorded, when every stage waits for the device.
    The stages are printed and written beside the recording, a Chrome trace and summaries of its operations. Prefix
    caching is off, so that all runs compute the same rows; --set enable_prefix_caching=true turns it on.
    """
    texts = read_prompts(prompts, prompt_file)

    from rich.console import Console

    from diffulex_core.engine import Diffulex
    from diffulex_core.presets import given_to_engine
    from diffulex_core.profiling.table import summarize
    from diffulex_core.sampling_params import SamplingParams

    given = given_sampling(sampling)
    SamplingParams(**given)  # a mistake in the options shows before anything is loaded
    check_preset(preset, host)
    options: dict[str, Any] = {"enable_prefix_caching": False, "profiler_keep_steps": KEPT, **read_settings(settings)}
    with Diffulex(model, host=host, config_file=config_file, environ=os.environ, strict=True, **options) as engine:
        if preset is None:
            params = SamplingParams(**{**engine.config.sampling_defaults, **given})
        else:
            params = engine.preset(preset, **{**given_to_engine(engine.config, preset), **given})
        if warm_up:
            _run(engine, texts, params, forwards)
        timed = summarize(engine.recent_steps(_run(engine, texts, params, forwards)))
        engine.start_profile(name, {"torch_profiler_dir": str(output)})
        recorded = summarize(engine.recent_steps(_run(engine, texts, params, forwards)))
        files = engine.stop_profile()
    facts = {"timed": timed.as_json(), "recorded": recorded.as_json(), "files": [str(file) for file in files]}
    (output / f"{name}.stages.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if machine:
        click.echo(json.dumps(facts, indent=2))
        return
    table = stage_table(timed, recorded)
    Console().print(table)
    with (output / f"{name}.stages.txt").open("w", encoding="utf-8") as file:
        Console(file=file, width=100).print(table)
    click.echo(f"Written to {output}: {', '.join(file.name for file in files)}, {name}.stages.txt, {name}.stages.json")
    traces = [file.name for file in files if ".trace.json" in file.name]
    click.echo(f"Open {' or '.join(traces)} in chrome://tracing or https://ui.perfetto.dev.")


def stage_table(timed: ProfileSummary, recorded: ProfileSummary) -> Table:
    """The stages of both runs."""
    from rich.table import Table

    plural = "s" * (timed.steps != 1)
    title = (
        f"{timed.steps} step{plural}, in the median {timed.requests:g} requests, {timed.rows:g} rows, "
        f"{timed.head_rows:g} through the head"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("stage")
    for column in ("median ms", "p90 ms", "share", "median ms, recorded"):
        table.add_column(column, justify="right")
    for stage, again in zip(timed.stages, recorded.stages, strict=True):
        cells = (f"{stage.median:.3f}", f"{stage.p90:.3f}", f"{stage.share:.1%}", f"{again.median:.3f}")
        table.add_row(stage.stage, *cells, style="bold" if stage.stage == "step" else None)
    return table


def _run(engine: Diffulex, texts: Sequence[str], params: SamplingParams, forwards: int | None) -> int:
    """Answer the prompts, or begin to; returns the number of steps.

    Raises:
        RequestError: a prompt cannot be served.
    """
    from diffulex_core.errors import RequestError

    steps = 0
    with engine.stream(list(texts), params) as generation:
        while not generation.done and steps != forwards:
            steps += generation.advance().plan is not None
        if generation.done:
            failed = [output.error for output in generation.outputs if output.error]
            if failed:
                raise RequestError(failed[0])
    return steps
