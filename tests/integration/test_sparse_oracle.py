"""The sparse cache token for token against an oracle of its own: aligned and shifted logits, guidance, every knob."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from diffulex_core.engine import Diffulex
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.sparse import SparseConfig
from diffulex_dream.oracle import qwen2
from diffulex_llada.oracle import hf_reference
from tests.core.checkpoints import MASK_ID, VOCAB_SIZE, write_llada_checkpoint
from tests.families.oracle_sparse import Network, Sparse, dream, llada
from tests.integration.engines import MASK, PARITY, SETTINGS, engine, host, prompt

WORDS = 288


@cache
def network(checkpoint: str) -> Network:
    folder = PARITY / "checkpoints" / checkpoint
    config = json.loads((folder / "config.json").read_text())
    build = {"llada": hf_reference, "dream": qwen2}[checkpoint]
    model = build(config, load_file(folder / "model.safetensors"))
    return Network(model=model, mask=MASK, words=WORDS, shifted=checkpoint == "dream")


def config_of(sparse: Sparse, **more: Any) -> SparseConfig:
    return SparseConfig(
        retention_ratio=sparse.ratio,
        delay_step=sparse.delay,
        head_select=sparse.per_head,
        pool_kernel=sparse.pool,
        refresh_every=sparse.every,
        refresh_drift=sparse.drift,
        force_first=sparse.force_first,
        **more,
    )


def params(sparse: Sparse, **settings: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, ignore_eos=True, sparse=config_of(sparse), **settings)


def rows_of(answer: ReqTrajectory) -> list[int]:
    return [step.rows for step in answer.trajectory]


GRID = [
    Sparse(ratio=ratio, delay=delay, per_head=per_head, pool=pool)
    for ratio, delay, per_head, pool in (
        (1.0, 1, False, 3),
        (0.5, 0, False, 1),
        (0.5, 1, True, 3),
        (0.5, 3, False, 5),
        (0.3, 1, False, 3),
        (0.3, 0, True, 1),
        (0.3, 3, True, 5),
        (1.0, 0, True, 1),
        (0.05, 1, True, 3),
    )
]
EACH_SPARSE = pytest.mark.parametrize("sparse", GRID, ids=str)
SHAPES = [(9, 24, 8, 24), (5, 22, 8, 13), (17, 20, 6, 40), (1, 7, 3, 2)]
"""Prompt, canvas, block and steps: even, no multiples, more steps than positions, a prompt of one token."""


@pytest.mark.parametrize("checkpoint", ["llada", "dream"])
@EACH_SPARSE
def test_llada_decides_what_the_oracle_does_and_feeds_as_many_rows(checkpoint: str, sparse: Sparse) -> None:
    asked = [(prompt(shape[0], salt=index), *shape[1:]) for index, shape in enumerate(SHAPES)]
    expected = [llada(network(checkpoint), sparse, *each) for each in asked]
    with engine(checkpoint, decoding_strategy="llada_canvas", page_size=8) as ready:
        answers = ready.generate(
            [each[0] for each in asked],
            [params(sparse, gen_length=each[1], block_length=each[2], steps=each[3]) for each in asked],
        )
    assert [(list(answer.token_ids), rows_of(answer)) for answer in answers] == expected


@pytest.mark.parametrize("sparse", GRID[2:6], ids=str)
@pytest.mark.parametrize("checkpoint", ["llada", "dream"])
def test_a_guided_request_keeps_pairs_of_both_its_sequences(checkpoint: str, sparse: Sparse) -> None:
    expected = llada(network(checkpoint), sparse, prompt(9), 20, 8, 14, scale=1.5)
    with engine(checkpoint, decoding_strategy="llada_canvas", page_size=8) as ready:
        [answer] = ready.generate(prompt(9), params(sparse, gen_length=20, block_length=8, steps=14, cfg_scale=1.5))
    assert (list(answer.token_ids), rows_of(answer)) == expected


@EACH_SPARSE
def test_dream_takes_the_whole_canvas_for_its_block(sparse: Sparse) -> None:
    asked = [(prompt(30, salt=4), 8, 8), (prompt(12), 20, 9)]
    expected = [dream(network("dream"), sparse, *each) for each in asked]
    with engine("dream", decoding_strategy="dream_canvas") as ready:
        answers = ready.generate(
            [each[0] for each in asked],
            [params(sparse, gen_length=each[1], steps=each[2], alg="maskgit_plus") for each in asked],
        )
    assert [(list(answer.token_ids), rows_of(answer)) for answer in answers] == expected


@pytest.mark.parametrize(
    "sparse",
    [
        Sparse(every=2),
        Sparse(every=3, delay=0, per_head=True),
        Sparse(drift=0.25),
        Sparse(drift=0.5, delay=0, ratio=0.3),
        Sparse(force_first=True),
        Sparse(force_first=True, delay=0, ratio=1.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("checkpoint", ["llada", "dream"])
def test_pairs_are_renewed_by_count_and_by_drift_and_a_block_may_begin_with_its_first_position(
    checkpoint: str, sparse: Sparse
) -> None:
    expected = llada(network(checkpoint), sparse, prompt(9), 20, 8, 20)
    with engine(checkpoint, decoding_strategy="llada_canvas") as ready:
        [answer] = ready.generate(prompt(9), params(sparse, gen_length=20, block_length=8))
    tokens, rows = expected
    assert list(answer.token_ids) == tokens
    assert rows_of(answer) == rows


@pytest.mark.parametrize("sparse", GRID[2:7], ids=str)
def test_query_heads_that_share_a_kv_head_choose_together_in_an_aligned_family(sparse: Sparse, tmp_path: Path) -> None:
    written = write_llada_checkpoint(tmp_path / "ckpt", seed=3, n_heads=4, n_kv_heads=2)
    model = hf_reference(written.config, written.tensors)
    oracle = Network(model=model, mask=MASK_ID, words=VOCAB_SIZE, shifted=False)
    expected = llada(oracle, sparse, prompt(11), 18, 5, 16)
    settings = {**SETTINGS, "decoding_strategy": "llada_canvas"}
    with Diffulex(written.folder, host=host(), strict=True, **settings) as ready:
        [answer] = ready.generate(prompt(11), params(sparse, gen_length=18, block_length=5, steps=16))
    assert (list(answer.token_ids), rows_of(answer)) == expected
