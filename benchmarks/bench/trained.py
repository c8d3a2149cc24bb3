"""Speed at equal accuracy: a trained checkpoint answers the same unseen problems in several ways."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import torch
from benchmarks.bench.authors import bidirectional, denoise
from benchmarks.bench.gemma import VISION
from benchmarks.bench.session import Settings, watched_ways
from benchmarks.bench.turns import Spread, ratios
from benchmarks.bench.work import Answer, Work

PROBLEMS = 48
CANVAS = 32
"""Positions of a canvas: the answers have 17 tokens, and an end token."""
Ways = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Name of a contender -> its class and the class's keywords, less the model."""


def _ours(name: str = "as the checkpoint recommends", **settings: Any) -> Ways:
    target = "benchmarks.bench.trained:TrainedEngine"
    return {f"our engine, {name}, one at a time": (target, {"together": False, "settings": settings})}


_BATCH: Ways = MappingProxyType(
    {
        "our engine, as the checkpoint recommends, one batch": (
            "benchmarks.bench.trained:TrainedEngine",
            {"together": True, "settings": {}},
        )
    }
)
_ONE_BLOCK = _ours("one block at a time", decoding_strategy="multi_bd", block_size=4, buffer_size=1)
MODELS: Mapping[str, Ways] = MappingProxyType(
    {
        "tiny/llada": {
            "authors' loop, transformers, one at a time": ("benchmarks.bench.trained:TrainedAuthors", {}),
            **_ours("canvas", decoding_strategy="llada_canvas", steps=CANVAS, block_length=8, page_size=32),
            **_ours(),
            **_BATCH,
        },
        "tiny/llada2": {**_ONE_BLOCK, **_ours(), **_BATCH},
        "tiny/dream": {**_ONE_BLOCK, **_ours(), **_BATCH},
        "tiny/gemma": {
            "transformers generate, one at a time": ("benchmarks.bench.trained:TrainedNative", {}),
            **_ours(),
            **_BATCH,
        },
    }
)
"""The checkpoints, and in which ways each answers; the others are compared with the first one's speed. Every network
is in float32."""


def _problems(model: str) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and right answers as tokens."""
    from tokenizers import Tokenizer

    from diffulex_tiny import problems

    tokenizer = Tokenizer.from_file(f"{_folder(model)}/tokenizer.json")
    chosen = [*problems.problems(2, "eval", PROBLEMS)]

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return [ids(each.prompt) for each in chosen], [ids(each.answer) for each in chosen]


def _folder(model: str) -> Path:
    from diffulex_core.host import Host
    from diffulex_core.sources import resolve_model

    return resolve_model(model, Host.discover())


def _read(model: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A checkpoint's config.json and tensors."""
    from safetensors.torch import load_file

    folder = _folder(model)
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def cut(tokens: Sequence[int], end: int) -> list[int]:
    """What stands before the first end token."""
    row = list(tokens)
    return row[: row.index(end)] if end in row else row


class TrainedEngine:
    """Our engine as a contender."""

    def __init__(self, *, model: str, together: bool, settings: Mapping[str, Any]) -> None:
        from diffulex_core.engine import Diffulex
        from diffulex_core.sampling_params import SamplingParams

        self._engine = Diffulex(model, device="cpu", dtype="float32", enable_prefix_caching=False, **settings)
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

    def __init__(self, *, model: str) -> None:
        from diffulex_llada.oracle import hf_reference

        config, tensors = _read(model)
        self._model = hf_reference(config, tensors)
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


class TrainedNative:
    """transformers' generation of DiffusionGemma as a contender, with the checkpoint's own settings."""

    def __init__(self, *, model: str) -> None:
        from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

        config, _ = _read(model)
        self._model = DiffusionGemmaForBlockDiffusion.from_pretrained(
            _folder(model),
            config=DiffusionGemmaConfig.from_dict({**config, "vision_config": {**VISION}}),
            dtype=torch.float32,
            attn_implementation="sdpa",
        )
        self._model.model.encoder.register_forward_hook(self._encoded)
        self._model.model.decoder.register_forward_hook(self._denoised)
        self._end = config["eos_token_id"]

    def prepare(self, work: Work, prompts: Sequence[Sequence[int]]) -> None:
        """Keep the prompts."""
        self._prompts = [torch.tensor([list(prompt)]) for prompt in prompts]

    @torch.inference_mode()
    def run(self) -> Answer:
        """Answer one after the other."""
        torch.manual_seed(0)
        self._steps = self._encoded_rows = self._canvas_rows = 0
        tokens = []
        for prompt in self._prompts:
            found = self._model.generate(prompt, max_new_tokens=CANVAS, disable_compile=True)
            tokens.append(cut(found.sequences[0, prompt.shape[1] :].tolist(), self._end))
        return Answer(
            tokens=tokens,
            steps=self._steps,
            planned_steps=self._steps,
            rows=self._encoded_rows + self._canvas_rows,
            head_rows=self._canvas_rows,
        )

    def _encoded(self, _module: object, _given: object, output: Any) -> None:
        self._encoded_rows += output.last_hidden_state.shape[:2].numel()

    def _denoised(self, _module: object, _given: object, output: Any) -> None:
        self._steps += 1
        self._canvas_rows += output.last_hidden_state.shape[:2].numel()


def measure_trained(settings: Settings, model: str) -> list[dict[str, Any]]:
    """For each way of a checkpoint its visible tokens per second, right answers, and its speed beside the first one's.

    Raises:
        BusyMachine: other processes ran while it was measured.
    """
    prompts, answers = _problems(model)
    work = Work(prompt=0, output=CANVAS, batch=1, steps=CANVAS)
    ways = {name: (target, {"model": model, **named}) for name, (target, named) in MODELS[model].items()}
    run = watched_ways(ways, work, prompts, settings)
    base: list[float] = []
    found = []
    for name, rounds in run.kept.items():
        tokens = sum(map(len, rounds[0].answer.tokens))
        per_token = [each.wall / tokens for each in rounds]
        base = base or per_token
        found.append(
            {
                "model": model,
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
