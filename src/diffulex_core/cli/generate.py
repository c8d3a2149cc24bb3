"""`diffulex generate`: answer prompts from arguments, a file or standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import click

from diffulex_core.cli.config import config_options, read_settings
from diffulex_core.cli.sampling import given_sampling, prompt_options, read_prompts, sampling_options
from diffulex_core.host import Host
from diffulex_core.registry import did_you_mean


@click.command("generate")
@prompt_options
@config_options
@click.option("--tensor-parallel-size", type=int, help="Processes that share each layer.")
@click.option("--data-parallel-size", type=int, help="Copies of the model that share the prompts.")
@click.option("--preset", help="Named settings of the strategy, in place of what is not given; see `plugins show`.")
@sampling_options
@click.option("--logprobs", type=int, help="With --json: log probabilities, and so many alternatives for each token.")
@click.option("--live", is_flag=True, help="Show the answers while they are denoised.")
@click.option("--json", "machine", is_flag=True, help="Print JSON for machines.")
@click.pass_obj
def generate(
    host: Host,
    /,
    prompts: Sequence[str],
    prompt_file: TextIO | None,
    model: str | None,
    config_file: Path | None,
    settings: Sequence[str],
    tensor_parallel_size: int | None,
    data_parallel_size: int | None,
    preset: str | None,
    live: bool,
    machine: bool,
    **sampling: Any,
) -> None:
    """Answer PROMPTS, or one prompt per line of --file or standard input.

    Sampling options that are not given are the checkpoint's recommendation. Exit status 1 when a prompt failed.
    """
    texts = read_prompts(prompts, prompt_file)
    if live and machine:
        raise click.UsageError("--live draws in the terminal and --json prints for machines; give one of them.")
    if sampling["logprobs"] is not None and not machine:
        raise click.UsageError("--logprobs are printed for machines only; add --json.")

    from diffulex_core.cli import render
    from diffulex_core.engine import Diffulex
    from diffulex_core.presets import given_to_engine
    from diffulex_core.sampling_params import SamplingParams

    given = given_sampling(sampling)
    SamplingParams(**given)  # a mistake in the options shows before anything is loaded
    check_preset(preset, host)
    sizes = {"tensor_parallel_size": tensor_parallel_size, "data_parallel_size": data_parallel_size}
    options: dict[str, Any] = {
        **read_settings(settings),
        **{name: size for name, size in sizes.items() if size is not None},
    }
    with Diffulex(model, host=host, config_file=config_file, environ=os.environ, strict=True, **options) as engine:
        if preset is None:
            params = SamplingParams(**{**engine.config.sampling_defaults, **given})
        else:
            params = engine.preset(preset, **{**given_to_engine(engine.config, preset), **given})
        if live:
            outputs = render.live(engine, texts, params)
        else:
            outputs = engine.generate(list(texts), params, use_tqdm=not machine and sys.stderr.isatty())
    if machine:
        click.echo(render.as_json(texts, outputs))
    else:
        render.answers(texts, outputs, shown=live)
    if any(output.error for output in outputs):
        sys.exit(1)


def check_preset(name: str | None, host: Host) -> None:
    """Refuse a name that no strategy knows before anything is loaded."""
    known = {preset for strategy in host.strategies for preset in strategy.presets}
    if name is not None and name not in known:
        hint = did_you_mean(name, known)
        raise click.UsageError(
            f"No strategy has a preset {name!r}. There is {', '.join(sorted(known)) or 'none'}; `diffulex plugins "
            f"show STRATEGY` shows what they set.{' ' * bool(hint)}{hint}"
        )
