"""Answers and metrics for people and for machines, and the denoising as it happens."""

from __future__ import annotations

import json
from collections.abc import Sequence

import cattrs
import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from diffulex_core.engine import Diffulex
from diffulex_core.generation import StreamEvent
from diffulex_core.outputs import GenerationOutputs
from diffulex_core.sampling_params import SamplingParams

MASK_GLYPH = "▒"
STYLES = ((0.9, "green"), (0.6, "yellow"), (0.0, "red"))
"""Colours of decided tokens by confidence: at least this much."""

METRICS = (
    ("total_generated_tokens", "tokens", "{:.0f}"),
    ("nfe", "forwards per answer", "{:.1f}"),
    ("steps_saved", "planned forwards saved by early ends, per answer", "{:.1f}"),
    ("tpf", "tokens per decode forward (TPF)", "{:.2f}"),
    ("tpf_total", "tokens per forward, prefill included", "{:.2f}"),
    ("throughput", "tokens per second, all answers", "{:.1f}"),
    ("ttft", "seconds to first token", "{:.3f}"),
    ("tpot", "seconds per further token", "{:.4f}"),
    ("prefill_tokens", "prompt rows computed", "{:.0f}"),
    ("decode_rows", "other rows computed", "{:.0f}"),
    ("head_rows", "rows through the head", "{:.0f}"),
    ("total_time", "seconds in all", "{:.2f}"),
)


def answers(prompts: Sequence[str], outputs: GenerationOutputs, *, shown: bool) -> None:
    """Print each answer below its prompt (unless `shown` already), then the metrics."""
    console = Console()
    if not shown:
        for prompt, output in zip(prompts, outputs, strict=True):
            console.print(Text(prompt, style="bold"))
            if output.error:
                console.print(Text(output.error, style="red"))
            else:
                console.print(Text(output.text))
            console.print()
    console.print(metrics_table(outputs))


def metrics_table(outputs: GenerationOutputs) -> Table:
    """The metrics worth a look, as a table."""
    table = Table(title=f"{len(outputs)} prompt{'s' * (len(outputs) != 1)}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    values = outputs.metrics()
    planned = any(output.steps_saved is not None for output in outputs)
    for name, label, form in METRICS:
        if planned or name != "steps_saved":
            table.add_row(label, form.format(values[name]))
    reasons = [output.completion_reason.value for output in outputs]
    table.add_row("ended by", ", ".join(f"{reason} {reasons.count(reason)}" for reason in sorted(set(reasons))))
    return table


def as_json(prompts: Sequence[str], outputs: GenerationOutputs) -> str:
    """`{"answers": [...], "metrics": {...}}`."""
    data = {
        "answers": [
            {
                "prompt": prompt,
                "text": output.text,
                "token_ids": list(output.token_ids),
                "completion_reason": output.completion_reason.value,
                "error": output.error,
                "nfe": output.nfe,
                "steps_saved": output.steps_saved,
                "tpf": output.tpf,
                **({} if output.logprobs is None else {"logprobs": cattrs.unstructure(output.logprobs)}),
            }
            for prompt, output in zip(prompts, outputs, strict=True)
        ],
        "metrics": outputs.metrics(),
    }
    return json.dumps(data, indent=2, ensure_ascii=False)


def live(engine: Diffulex, prompts: Sequence[str], params: SamplingParams) -> GenerationOutputs:
    """Answer the prompts and redraw every canvas after each step."""
    views = [_View(engine, prompt) for prompt in prompts]
    with engine.stream(list(prompts), params) as generation, Live(refresh_per_second=20) as screen:
        for event in generation:
            views[event.index].update(event)
            screen.update(Group(*(view.panel() for view in views)))
        screen.refresh()
        return generation.outputs


class _View:
    """One prompt's canvas on the screen."""

    def __init__(self, engine: Diffulex, prompt: str) -> None:
        self._tokenizer = engine.tokenizer
        self._prompt = prompt
        self._confidence: dict[int, float] = {}
        self._body = Text(MASK_GLYPH, style="dim")
        self._forwards = 0
        self._title = "waiting"

    def update(self, event: StreamEvent) -> None:
        if event.trajectory is not None and event.trajectory.error:
            self._title = "error"
            self._body = Text(event.trajectory.error, style="red")
            return
        self._forwards += 1
        self._confidence.update(zip(event.newly_decided.tolist(), event.confidence.tolist(), strict=True))
        if event.trajectory is not None:
            self._body = Text(event.trajectory.text)
            self._title = (
                f"{event.trajectory.tokens_visible} tokens in {event.trajectory.nfe} forwards, "
                f"{event.trajectory.completion_reason.value}"
            )
            return
        canvas = event.canvas
        self._title = f"forward {self._forwards}, {int(np.count_nonzero(canvas.decided))} tokens decided"
        self._body = Text()
        for offset, (token, decided) in enumerate(zip(canvas.tokens.tolist(), canvas.decided.tolist(), strict=True)):
            if not decided:
                self._body.append(MASK_GLYPH, style="dim")
                continue
            sure = self._confidence.get(canvas.start + offset, 1.0)
            style = next(style for least, style in STYLES if sure >= least)
            weight = "bold " if offset < canvas.committed else ""
            self._body.append(self._tokenizer.decode([token]), style=weight + style)

    def panel(self) -> Panel:
        return Panel(Group(Text(self._prompt, style="bold"), self._body), title=self._title, title_align="left")
