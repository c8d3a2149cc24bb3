"""Every family decodes its small random checkpoint with every strategy that fits it, and finds out whose it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from diffulex_core.config.derive import VOCABULARY_KEYS
from diffulex_core.config.names import misfits
from diffulex_core.engine import Diffulex
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from tests.core.checkpoints import MASK_ID, VOCAB_SIZE, write_tokenizer
from tests.families.layouts import layouts, write
from tests.families.subjects import PLAIN, Subject, host
from tests.families.test_family_oracles import drawn

BLOCK = 4
SETTINGS: dict[str, dict[str, Any]] = {"diffusion_gemma": {"diffusion_gemma_max_denoising_steps": 3}}
"""Of single strategies. A random network believes its own beliefs: they magnify what two backends round differently up
to tenfold in each step, from 1e-6 in the first to 4e-4 in the fifth, where a draw may fall to another token."""
PROMPTS = [[5, 9, 2, 31, 17], [44, 3], [8] * 11]
PAIRS = [
    pytest.param(subject, strategy.name, id=f"{subject}-{strategy.name}")
    for subject in PLAIN
    for strategy in host().strategies
    if not misfits(subject.family, strategy, host())
]


def checkpoint(plain: Subject, folder: Path) -> Path:
    """The small config.json with a vocabulary for the byte-level tokenizer, random weights, and that tokenizer."""
    subject = attrs.evolve(plain, config={**_with_tokenizer(plain.config), "mask_token_id": MASK_ID})
    write(folder, drawn(next(iter(layouts(subject)))), files=2)
    (folder / "config.json").write_text(json.dumps(subject.config))
    write_tokenizer(folder)
    return folder


def _with_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with room for the byte-level tokenizer's ids, wherever it names a size of the vocabulary."""
    changed = {key: 263 for key in VOCABULARY_KEYS if key in config}
    nested = {key: _with_tokenizer(value) for key, value in config.items() if isinstance(value, Mapping)}
    return {**config, **changed, **nested}


def answers(folder: Path, strategy: str, **settings: Any) -> list[ReqTrajectory]:
    options = {"decoding_strategy": strategy, "block_size": BLOCK, "page_size": 8, "buffer_size": 2, "num_pages": 32}
    with Diffulex(folder, host=host(), strict=True, **{**options, **SETTINGS.get(strategy, {}), **settings}) as engine:
        params = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True, seed=3)
        return list(engine.generate(PROMPTS, params))


@pytest.mark.parametrize(("subject", "strategy"), PAIRS)
def test_a_family_answers_with_every_strategy_that_fits(subject: Subject, strategy: str, tmp_path: Path) -> None:
    folder = checkpoint(subject, tmp_path)
    together = answers(folder, strategy)
    for answer in together:
        assert len(answer.token_ids) == 10
        assert MASK_ID not in answer.token_ids
        assert max(answer.token_ids) < VOCAB_SIZE
    alone = answers(folder, strategy, max_num_reqs=1)
    assert [answer.token_ids for answer in alone] == [answer.token_ids for answer in together]
    other = answers(folder, strategy, max_num_reqs=1, attn_impl="torch_ref")
    assert [answer.token_ids for answer in other] == [answer.token_ids for answer in together]


def test_every_family_with_a_default_strategy_is_decoded_by_it() -> None:
    decoded = {(parameter.values[0].family.name, parameter.values[1]) for parameter in PAIRS}
    for subject in PLAIN:
        default = subject.family.default_strategy
        assert default is None or (subject.family.name, default) in decoded
