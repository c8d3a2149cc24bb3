"""DiffusionGemma: transformers' own `generate` and our engine, with equal steps for a canvas of the same length."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import torch
from benchmarks.bench.networks import write_words
from benchmarks.bench.session import Settings, watched_ways
from benchmarks.bench.turns import DifferentTokens, Spread, ratios
from benchmarks.bench.work import Answer, Work

VOCABULARY, CANVAS = 16384, 256
WORK = Work(prompt=64, output=CANVAS, batch=1, steps=8)
SHAPE: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 6,
        "num_attention_heads": 8, "num_key_value_heads": 4, "num_global_key_value_heads": 2, "head_dim": 64,
        "global_head_dim": 128, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 256,
        "sliding_window": 128, "use_bidirectional_attention": "vision", "max_position_embeddings": 2048,
        "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0,
    }
)  # fmt: skip
"""Six layers of 512, every sixth with full attention, eight experts of which two are asked."""
VISION: Mapping[str, Any] = MappingProxyType(
    {
        "model_type": "gemma4_vision", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "position_embedding_size": 16,
        "patch_size": 2,
    }
)  # fmt: skip
"""The smallest vision network, which transformers' class cannot do without."""
RULES: Mapping[str, Any] = MappingProxyType({"t_min": 0.4, "t_max": 0.8, "stability_threshold": 1})
NEVER_SURE = 1e-9
"""Mean entropy that no canvas of a random network falls to, so that each takes all of its steps."""
WAYS: Mapping[str, str] = MappingProxyType(
    {
        "transformers generate": "benchmarks.bench.gemma:Native",
        "our engine, diffusion_gemma": "benchmarks.bench.gemma:Ours",
    }
)


def write_gemma(folder: Path) -> Path:
    """Write a random checkpoint as transformers does, unless it is there; returns its folder."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DiffusionGemmaTextConfig

    folder = folder / "gemma-0"
    if (folder / "tokenizer.json").exists():
        return folder
    config = DiffusionGemmaConfig(
        text_config=DiffusionGemmaTextConfig(**SHAPE), vision_config={**VISION}, canvas_length=CANVAS
    )
    torch.manual_seed(0)
    model = DiffusionGemmaForBlockDiffusion(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1 and "embed" not in name:
                tensor.normal_(std=tensor.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    write_words(folder, VOCABULARY, {"pad_token": 0, "eos_token": 1, "bos_token": 2})
    return folder


class Native:
    """transformers' generation as a contender."""

    def __init__(self, *, folder: str) -> None:
        from safetensors.torch import load_file

        from diffulex_gemma.oracle import hf_reference

        path = Path(folder)
        self._model = hf_reference(
            json.loads((path / "config.json").read_text()), load_file(path / "model.safetensors")
        )
        self._model.set_attn_implementation("sdpa")

    def prepare(self, work: Work, prompts: Sequence[Sequence[int]]) -> None:
        """Keep the prompts."""
        self._work, self._prompts = work, torch.tensor([list(prompt) for prompt in prompts])

    @torch.inference_mode()
    def run(self) -> Answer:
        """One canvas."""
        from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

        work = self._work
        torch.manual_seed(0)
        found = self._model.generate(
            self._prompts,
            max_new_tokens=work.output,
            max_denoising_steps=work.steps,
            sampler_config=EntropyBoundSamplerConfig(entropy_bound=0.1),
            confidence_threshold=NEVER_SURE,
            eos_token_id=None,
            disable_compile=True,
            **RULES,
        )
        rows = work.prompt + work.steps * work.output
        return Answer(
            tokens=found.sequences[:, work.prompt :].tolist(),
            steps=work.steps,
            planned_steps=work.steps,
            rows=rows,
            head_rows=work.steps * work.output,
        )


class Ours:
    """Our engine as a contender."""

    def __init__(self, *, folder: str) -> None:
        from diffulex_core.engine import Diffulex

        self._engine = Diffulex(
            folder,
            device="cpu",
            enable_prefix_caching=False,
            block_size=CANVAS,
            page_size=CANVAS,
            num_pages=4,
            max_model_len=WORK.prompt + WORK.output,
            max_num_reqs=1,
            max_denoising_steps=WORK.steps,
            confidence_threshold=NEVER_SURE,
            entropy_bound=0.1,
            **RULES,
        )

    def prepare(self, work: Work, prompts: Sequence[Sequence[int]]) -> None:
        """Keep the prompts."""
        from diffulex_core.sampling_params import SamplingParams

        self._prompts = [list(prompt) for prompt in prompts]
        self._params = SamplingParams(temperature=1.0, max_tokens=work.output, ignore_eos=True, seed=0)

    def run(self) -> Answer:
        """One canvas."""
        outputs = self._engine.generate(self._prompts, self._params)
        failed = [answer.error for answer in outputs if answer.error is not None]
        if failed:
            raise RuntimeError(failed[0])
        return Answer(
            tokens=[list(answer.token_ids) for answer in outputs],
            steps=outputs.batch_step_count,
            planned_steps=outputs.batch_step_count,
            rows=outputs.prefill_tokens + outputs.decode_rows,
            head_rows=outputs.head_rows,
        )


def measure_gemma(settings: Settings) -> list[dict[str, Any]]:
    """For each way its speed, and how much faster than the first it is. Random numbers differ, so tokens do, too.

    Raises:
        BusyMachine: other processes ran while it was measured.
        DifferentTokens: an answer is not as long as the other, or took other steps.
    """
    folder = write_gemma(settings.folder)
    prompts = torch.randint(3, VOCABULARY, (WORK.batch, WORK.prompt), generator=torch.Generator().manual_seed(1))
    ways = {name: (target, {"folder": str(folder)}) for name, target in WAYS.items()}
    run = watched_ways(ways, WORK, prompts.tolist(), settings)
    found, base = list[dict[str, Any]](), list[float]()
    for name, rounds in run.kept.items():
        answer = rounds[0].answer
        if [*map(len, answer.tokens)] != [WORK.output] * WORK.batch or answer.steps != WORK.steps:
            raise DifferentTokens(
                f"{name} gave {[*map(len, answer.tokens)]} tokens in {answer.steps} steps, not {WORK.output} in "
                f"{WORK.steps}."
            )
        wall = [each.wall for each in rounds]
        base = base or wall
        found.append(
            {
                "name": name,
                "prompt": WORK.prompt,
                "output": WORK.output,
                "steps": answer.steps,
                "head_rows": answer.head_rows,
                "rows": answer.rows,
                "ms_per_step": attrs.asdict(Spread.of([1e3 * each / answer.steps for each in wall])),
                "cpu_seconds": attrs.asdict(Spread.of([each.cpu for each in rounds])),
                "faster": attrs.asdict(ratios(base, wall)),
                "others": run.others,
                "citable": run.citable,
            }
        )
    return found
