"""Exported folders are checkpoints that the engine recognises, loads and decodes by their own defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffulex_core.engine import Diffulex
from diffulex_core.sampling_params import SamplingParams
from diffulex_tiny import problems
from diffulex_tiny.recipe import dream, dream_export, gemma, gemma_export, llada2, llada2_export, warm
from diffulex_tiny.recipe.gemma_network import GemmaNetwork, Shape
from diffulex_tiny.recipe.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
ASKED = [problem.prompt for problem in problems.problems(1, "eval", 3, "long")]


def write_llada2(folder: Path) -> None:
    network = llada2.build_network(llada2.Recipe(), TOKENIZER)
    llada2.upcycle(network, warm.teacher(TOKENIZER))
    llada2_export.export(network, folder)


def write_dream(folder: Path) -> None:
    dream_export.export(dream.build_network(dream.Recipe(), TOKENIZER), folder)


def write_gemma(folder: Path) -> None:
    torch.manual_seed(0)
    network = GemmaNetwork(Shape(vocab_size=TOKENIZER.get_vocab_size()))
    gemma.start_from(network, warm.teacher(TOKENIZER))
    gemma_export.export(network, folder)


@pytest.mark.parametrize(
    ("write", "family", "strategy", "block_size", "mask"),
    [
        (write_llada2, "llada2", "dmax", 32, 674),
        (write_dream, "dream", "d2f", 4, 674),
        (write_gemma, "diffusion_gemma", "diffusion_gemma", 32, None),
    ],
    ids=["llada2", "dream", "gemma"],
)
def test_a_folder_is_recognised_and_its_defaults_hold(
    tmp_path: Path, write: Callable[[Path], None], family: str, strategy: str, block_size: int, mask: int | None
) -> None:
    write(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 6_000_000
    with Diffulex(str(tmp_path), skip_warmup=True) as engine:
        config = engine.config
        outputs = engine.generate(ASKED, SamplingParams(max_tokens=12, max_nfe=6, temperature=0.0), use_tqdm=False)
    assert (config.family.name, config.strategy.name) == (family, strategy)
    assert config.decoding.block_size == block_size
    assert config.model.mask_token_id == mask
    assert set(config.model.eos_token_ids) == {673}
    assert all(2 <= output.nfe <= 6 for output in outputs)
