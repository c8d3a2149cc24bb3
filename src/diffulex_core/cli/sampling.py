"""The sampling parameters of an answer as options of commands, and the prompts of one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--temperature", type=float, help="0 = greedy."),
    click.option("--max-tokens", type=int, help="Limit on new tokens of each answer."),
    click.option("--max-nfe", type=int, help="Limit on forwards of each answer."),
    click.option("--max-repetition-run", type=int, help="Stop after this many equal tokens in a row."),
    click.option("--ignore-eos", is_flag=True, default=None, help="Go on past the end-of-text token."),
    click.option("--top-p", type=float, help="Draw from the smallest set of tokens that reaches this probability."),
    click.option("--top-k", type=int, help="Draw from this many most probable tokens."),
    click.option("--min-p", type=float, help="Drop tokens below this share of the most probable one."),
    click.option("--seed", type=int, help="Seed of the draws; the same seed gives the same answers."),
    click.option("--stop", multiple=True, help="Text that ends an answer; may be given several times."),
    click.option("--gen-length", type=int, help="Masks of a canvas (fixed-length generation)."),
    click.option("--steps", type=int, help="Steps in which a canvas is decided."),
    click.option("--block-length", type=int, help="Decide a canvas in blocks of this length."),
    click.option("--cfg-scale", type=float, help="Weight of classifier-free guidance on a canvas."),
)


def sampling_options(command: F) -> F:
    """Adds the options; those that were given are what `given_sampling` says of the command's `sampling`."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


def prompt_options(command: F) -> F:
    """Adds the argument `prompts` and the option `prompt_file`, for `read_prompts`."""
    file = click.option(
        "--file",
        "-f",
        "prompt_file",
        type=click.File("r", encoding="utf-8-sig", errors="surrogateescape"),
        help="One prompt per line; - = stdin.",
    )
    return click.argument("prompts", nargs=-1)(file(command))


def given_sampling(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as arguments of `SamplingParams`."""
    return {name: value for name, value in sampling.items() if value is not None and value != ()}


def read_prompts(prompts: Sequence[str], prompt_file: TextIO | None) -> Sequence[str]:
    """The prompts given as arguments, in a file, or on standard input.

    Raises:
        click.UsageError: there are none, they come from two places, or one is no text.
    """
    texts = _texts(prompts, prompt_file)
    for number, text in enumerate(texts, start=1):
        if not _is_text(text):
            raise click.UsageError(f"Prompt {number} is not valid UTF-8. Convert the input first.")
    return texts


def _texts(prompts: Sequence[str], prompt_file: TextIO | None) -> Sequence[str]:
    if prompts and prompt_file is not None:
        raise click.UsageError("Prompts were given as arguments and by --file; give one of them.")
    if prompts:
        return prompts
    source = sys.stdin if prompt_file is None else prompt_file
    if source.isatty():
        raise click.UsageError("No prompt. Give one as an argument, a file with --file, or pipe prompts to stdin.")
    lines = [line.rstrip("\n") for line in source if line.strip()]
    if not lines:
        raise click.UsageError("No prompt: the input has no line with text.")
    return lines


def _is_text(text: str) -> bool:
    """Whether every byte could be decoded; those that could not became halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
