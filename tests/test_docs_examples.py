"""What pages show can be done: examples run and print what stands below them, commands and numbers exist."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest

from diffulex import Diffulex, SamplingParams
from diffulex_core.cli.app import build_cli
from diffulex_core.config.schema import build_schema, core_sections
from diffulex_core.host import Host
from diffulex_core.outputs import GenerationOutputs
from diffulex_core.types import CompletionReason
from tests.integration.matrix import Checkpoints
from tests.test_docs import code_blocks, section

ROOT = Path(__file__).parent.parent
USAGE = ROOT / "docs/usage.md"
PAGES = [ROOT / "README.md", ROOT / "plugins/diffulex/README.md", USAGE, *sorted(ROOT.glob("docs/strategies/*.md"))]
STANDINS = {
    "path/to/LLaDA2.1-mini": "llada2",
    "path/to/LLaDA2.0-mini-DMax": "llada2",
    "path/to/Fast_dLLM_v2_7B": "fast_dllm_v2",
    "path/to/diffusion-gemma": "diffusion_gemma",
}
"""Families whose random checkpoints take the place of those that examples name."""
QUESTION = (
    "Q: A shop has 13 tickets. It buys 26 more in the morning and sells 8 in the evening. "
    "How many tickets does the shop have now?"
)
EXAMPLE = re.compile(r"^```python\n(.*?)^```\n(?:\n^```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def checkpoints() -> Iterator[Checkpoints]:
    made = Checkpoints()
    yield made
    made.close()


def standin(folder: Path) -> Path:
    """A random checkpoint, with blocks as long as the published ones."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **{key: 32 for key in ("bd_size",) if key in config}}))
    return folder


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_examples_of_a_page_run_and_print_what_stands_below_them(path: Path, checkpoints: Checkpoints) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    parts = EXAMPLE.findall(path.read_text(encoding="utf-8"))
    assert len(parts) == len(code_blocks(path.read_text(encoding="utf-8"), "python"))
    for code, expected in parts:
        for model in re.findall(r'"(path/to/[^"]+)"', code):
            code = code.replace(model, str(standin(checkpoints(STANDINS[model]))))
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(code, names)
        if expected:
            assert said.getvalue() == expected


def test_the_strategy_of_the_plugin_guide_decides_strictly_from_the_left(monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = (
        block for block in code_blocks((ROOT / "docs/plugins.md").read_text(), "python") if "FromTheLeft" in block
    )
    plugin = ModuleType("diffulex_leftmost")
    monkeypatch.setitem(sys.modules, "diffulex_leftmost", plugin)
    exec(code, vars(plugin))
    assert decides_from_the_left("leftmost", Host.discover(extra=[plugin]))
    assert not decides_from_the_left("multi_bd", Host.discover())


def decides_from_the_left(strategy: str, host: Host) -> bool:
    """Whether no block of an answer ever has a decided position behind a mask."""
    params, found = SamplingParams(temperature=0, max_tokens=32), True
    with (
        Diffulex("tiny/llada", host=host, decoding_strategy=strategy, block_size=4) as engine,
        engine.stream(QUESTION, params) as stream,
    ):
        for event in stream:
            starts = range(-event.canvas.start % 4, len(event.canvas.decided), 4)
            found &= all((np.diff(block.astype(int)) <= 0).all() for block in np.split(event.canvas.decided, starts))
        assert stream.outputs[0].text == "13 + 26 = 39. 39 - 8 = 31. The answer is 31."
    return found


def commands() -> list[str]:
    blocks = [block for path in PAGES for block in code_blocks(path.read_text(encoding="utf-8"), "bash")]
    found = [line for block in blocks for line in block.splitlines() if line.startswith("diffulex ")]
    assert found, "no page shows a command"
    return found


@pytest.mark.parametrize("line", commands())
def test_a_command_that_is_shown_has_the_options_that_it_is_given(line: str) -> None:
    words = shlex.split(line.partition(" <")[0], comments=True)[1:]
    command: click.Command = build_cli(Host.discover(environ={}))
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, words[0]
        command, context, words = found, click.Context(found, parent=context), words[1:]
    command.make_parser(context).parse_args(words)


def test_every_reason_for_an_end_is_explained() -> None:
    documented = re.findall(r"^\| `(\w+)` \|", section(USAGE.read_text(), "Why an answer ended"), re.MULTILINE)
    assert documented[1:] == [reason.value for reason in CompletionReason]


def test_every_metric_is_explained_and_no_other() -> None:
    table = section(USAGE.read_text(), "Metrics")
    rows = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    documented = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(documented) == sorted(GenerationOutputs(trajectories=()).metrics())


def test_the_limits_that_are_named_have_the_defaults_that_are_told() -> None:
    told = dict(re.findall(r"`(\w+)` \((\d+)\)", section(USAGE.read_text(), "What fits")))
    defaults = {spec.name: spec.default for spec in build_schema(core_sections())}
    assert len(told) == 3
    assert {name: int(value) for name, value in told.items()} == {name: defaults[name] for name in told}
