"""Speed at equal accuracy: a trained checkpoint answers the same unseen problems in several ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs
import torch
from benchmarks.bench.authors import bidirectional, denoise
from benchmarks.bench.session import Settings, watched_ways
from benchmarks.bench.turns import Spread, ratios
from benchmarks.bench.work import Answer, Work

PROBLEMS = 48
CANVAS = 32
"""Positions of a canvas: the answers have 17 tokens, and an end token."""
_OURS = "benchmarks.bench.trained:TrainedEngine"
WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "authors' loop, transformers, one at a time": ("benchmarks.bench.trained:TrainedAuthors", {}),
        "our engine, canvas, one at a time": (_OURS, {"canvas": True, "together": False}),
        "our engine, as the checkpoint recommends, one at a time": (_OURS, {"canvas": False, "together": False}),
        "our engine, as the checkpoint recommends, one batch": (_OURS, {"canvas": False, "together": True}),
    }
)


def _problems() -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and right answers as tokens."""
    from tokenizers import Tokenizer

    from diffulex_core.host import Host
    from diffulex_core.sources import resolve_model
    from diffulex_tiny import problems

    folder = resolve_model("tiny/llada", Host.discover())
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    chosen = [*problems.problems(2, "eval", PROBLEMS)]

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return [ids(each.prompt) for each in chosen], [ids(each.answer) for each in chosen]


def cut(tokens: Sequence[int], end: int) -> list[int]:
    """What stands before the first end token."""
    row = list(tokens)
    return row[: row.index(end)] if end in row else row


class TrainedEngine:
    """Our engine as a contender."""

    def __init__(self, *, canvas: bool, together: bool) -> None:
        from diffulex_core.engine import Diffulex
        from diffulex_core.sampling_params import SamplingParams

        ways = {"decoding_strategy": "llada_canvas", "steps": CANVAS, "block_length": 8, "page_size": 32}
        self._engine = Diffulex("tiny/llada", device="cpu", enable_prefix_caching=False, **(ways if canvas else {}))
        self._params = SamplingParams(temperature=0.0, max_tokens=CANVAS)
        self._together = together

    def prepare(self, work: Work, prompts: Sequence[Sequence[int]]) -> None:
        """Keep the prompts."""
        self._prompts = [list(prompt) for prompt in prompts]

    def run(self) -> Answer:
        """Answer all of them."""
        batches = [self._prompts] if self._together else [[prompt] for prompt in self._prompts]
        outputs = [self._engine.generate(batch, self._params) for batch in batches]
        steps = sum(each.batch_step_count for each in outputs)
        return Answer(
            tokens=[list(answer.token_ids) for each in outputs for answer in each],
            steps=steps,
            planned_steps=steps,
            rows=sum(each.prefill_tokens + each.decode_rows for each in outputs),
            head_rows=sum(each.head_rows for each in outputs),
        )


class TrainedAuthors:
    """The authors' loop as a contender."""

    def __init__(self) -> None:
        import json

        from safetensors.torch import load_file

        from diffulex_core.host import Host
        from diffulex_core.sources import resolve_model
        from diffulex_llada.oracle import hf_reference

        folder = resolve_model("tiny/llada", Host.discover())
        config = json.loads((folder / "config.json").read_text())
        self._model = hf_reference(config, load_file(folder / "model.safetensors"))
        self._model.set_attn_implementation("sdpa")
        bidirectional(self._model)
        self._mask, self._end = config["mask_token_id"], config["eos_token_id"]

    def prepare(self, work: Work, prompts: Sequence[Sequence[int]]) -> None:
        """Keep the prompts."""
        self._prompts = [torch.tensor([list(prompt)]) for prompt in prompts]

    def run(self) -> Answer:
        """Answer one after the other, as the loop pads nothing."""
        tokens, steps, rows = [], 0, 0
        for prompt in self._prompts:
            found = denoise(self._model, prompt, output=CANVAS, steps=CANVAS, block_length=8, mask=self._mask)
            tokens.append(cut(found.tokens[0, prompt.shape[1] :].tolist(), self._end))
            steps += found.steps
            rows += found.steps * found.tokens.numel()
        return Answer(tokens=tokens, steps=steps, planned_steps=steps, rows=rows, head_rows=rows)


def measure_trained(settings: Settings) -> list[dict[str, Any]]:
    """For each way its speed in visible tokens, how many answers are right, and how much faster than the first it is.

    Raises:
        BusyMachine: other processes ran while it was measured.
    """
    prompts, answers = _problems()
    work = Work(prompt=0, output=CANVAS, batch=1, steps=CANVAS)
    run = watched_ways(WAYS, work, prompts, settings)
    base: list[float] = []
    found = []
    for name, rounds in run.kept.items():
        tokens = sum(map(len, rounds[0].answer.tokens))
        per_token = [each.wall / tokens for each in rounds]
        base = base or per_token
        found.append(
            {
                "name": name,
                "problems": len(prompts),
                "right": sum(given == wanted for given, wanted in zip(rounds[0].answer.tokens, answers, strict=True)),
                "tokens": tokens,
                "forwards": rounds[0].answer.steps,
                "rows": rounds[0].answer.rows,
                "head_rows": rounds[0].answer.head_rows,
                "tokens_per_second": attrs.asdict(Spread.of([1 / each for each in per_token])),
                "cpu_seconds": attrs.asdict(Spread.of([each.cpu for each in rounds])),
                "faster": attrs.asdict(ratios(base, per_token)),
                "others": run.others,
                "citable": run.citable,
            }
        )
    return found
