"""LLaDA's logits against transformers' own Llama with the same weights and an explicit mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.attention.reference import TorchReference
from diffulex_core.context import BuildContext
from diffulex_core.protocols import AttentionBackend, DiffusionModel
from diffulex_core.weights import load_weights
from diffulex_llada.model import build
from diffulex_llada.oracle import hf_reference
from diffulex_llada.weights import WEIGHTS
from tests.core.checkpoints import Checkpoint, write_llada_checkpoint
from tests.core.forward import CPU, Rows, all_visible, block_causal, pages, run_model

BLOCK, PAGE = 4, 4
LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 2)

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "grouped": {},
    "multi_head": {"n_kv_heads": 4},
    "kv_heads_null": {"n_kv_heads": None},
    "multi_query": {"n_kv_heads": None, "multi_query_attention": True},
    "tied": {"weight_tying": True},
    "qkv_bias": {"include_qkv_bias": True},
    "all_biases_tied": {"include_bias": True, "weight_tying": True},
    "odd_vocabulary": {"vocab_size": 263, "embedding_size": None},
    "padded_embedding": {"vocab_size": 259, "embedding_size": 271},
    "mlp_ratio": {"mlp_hidden_size": None, "mlp_ratio": 3},
    "large_theta": {"rope_theta": 500000.0, "rms_norm_eps": 1e-3},
}


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> DiffusionModel:
    model = build(checkpoint.config, BuildContext(dtype=dtype, device=torch.device("meta")))
    load_weights(model, WEIGHTS, checkpoint.folder, checkpoint.config, dtype=dtype, device=CPU, progress=False)
    return model


def oracle(checkpoint: Checkpoint) -> LlamaForCausalLM:
    return hf_reference(checkpoint.config, checkpoint.tensors)


def expected_logits(oracle: LlamaForCausalLM, ids: Tensor, key_end: list[int]) -> Tensor:
    positions = torch.arange(len(ids))
    allowed = positions[None] < torch.tensor(key_end)[:, None]
    mask = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        output = oracle(input_ids=ids[None], position_ids=positions[None], attention_mask=mask, use_cache=False)
    logits: Tensor = output.logits[0]
    return logits


def token_ids(length: int) -> Tensor:
    return torch.randint(0, 259, (length,), generator=torch.Generator().manual_seed(length))


def check_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_llamas_with_all_positions_visible_and_block_causally(tmp_path: Path, variant: str) -> None:
    checkpoint = write_llada_checkpoint(tmp_path, files=2, **VARIANTS[variant])
    model, llama = load(checkpoint), oracle(checkpoint)
    for length in LENGTHS:
        ids = token_ids(length)
        for key_end in (all_visible(length), block_causal(length, BLOCK)):
            rows = Rows(tokens=ids.tolist(), key_end=key_end, table=[2, 0, 3, 1])
            (got,) = run_model(model, [rows], pages(model.kv_geometry, 4, PAGE))
            check_close(got, expected_logits(llama, ids, key_end))


def test_a_head_bias_is_added(tmp_path: Path) -> None:
    checkpoint = write_llada_checkpoint(tmp_path, include_bias=True)
    bias = checkpoint.tensors["model.transformer.ff_out.bias"]
    without = {name: tensor for name, tensor in checkpoint.tensors.items() if tensor is not bias}
    model = load(checkpoint)
    ids = token_ids(6)
    rows = Rows(tokens=ids.tolist(), key_end=all_visible(6), table=[0, 1])
    (got,) = run_model(model, [rows], pages(model.kv_geometry, 2, PAGE))
    plain = Checkpoint(folder=checkpoint.folder, config=checkpoint.config, tensors=without)
    check_close(got, expected_logits(oracle(plain), ids, all_visible(6)) + bias)


@pytest.mark.parametrize("backend", [TorchCPU(), TorchReference()], ids=["torch_cpu", "torch_ref"])
@pytest.mark.parametrize("length", LENGTHS)
def test_decoding_block_by_block_from_the_cache_equals_the_whole_sequence(
    tmp_path: Path, backend: AttentionBackend, length: int
) -> None:
    checkpoint = write_llada_checkpoint(tmp_path, seed=3)
    model = load(checkpoint)
    ids = token_ids(length)
    expected = expected_logits(oracle(checkpoint), ids, block_causal(length, BLOCK))
    store = pages(model.kv_geometry, 6, PAGE, fill=float("nan"))
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        # The block is denoised with other tokens first: only the last pass over it may count.
        for tokens in ((ids[start:end] + 7) % 259, ids[start:end]):
            rows = Rows(tokens=tokens.tolist(), start=start, key_end=all_visible(end)[start:], table=[4, 1, 5, 0])
            (got,) = run_model(model, [rows], store, backend=backend)
        check_close(got, expected[start:end])


def test_sequences_in_one_ragged_forward_do_not_see_each_other(tmp_path: Path) -> None:
    checkpoint = write_llada_checkpoint(tmp_path)
    model, llama = load(checkpoint), oracle(checkpoint)
    sequences = [
        Rows(
            tokens=token_ids(length).tolist(),
            key_end=block_causal(length, BLOCK),
            table=range(4 * place, 4 * place + 4),
        )
        for place, length in enumerate(LENGTHS)
    ]
    store = pages(model.kv_geometry, 4 * len(LENGTHS), PAGE, fill=float("nan"))
    for length, got in zip(LENGTHS, run_model(model, sequences, store), strict=True):
        check_close(got, expected_logits(llama, token_ids(length), block_causal(length, BLOCK)))


def test_a_token_changes_the_logits_of_exactly_the_rows_that_see_it(tmp_path: Path) -> None:
    checkpoint = write_llada_checkpoint(tmp_path)
    model = load(checkpoint)
    length = 3 * BLOCK
    ids = token_ids(length)

    def logits(tokens: Tensor) -> Tensor:
        rows = Rows(tokens=tokens.tolist(), key_end=block_causal(length, BLOCK), table=[0, 1, 2])
        return run_model(model, [rows], pages(model.kv_geometry, 3, PAGE))[0]

    before = logits(ids)
    for position in range(length):
        changed = ids.clone()
        changed[position] = (ids[position] + 1) % 259
        differs = (logits(changed) != before).any(-1)
        sees = torch.arange(length) // BLOCK >= position // BLOCK
        assert torch.equal(differs, sees)


def test_half_precision_stays_near_full_precision(tmp_path: Path) -> None:
    checkpoint = write_llada_checkpoint(tmp_path, dtype=torch.bfloat16)
    ids = token_ids(9)
    rows = Rows(tokens=ids.tolist(), key_end=all_visible(9), table=[0, 1, 2])
    wide, narrow = (load(checkpoint, dtype) for dtype in (torch.float32, torch.bfloat16))
    (exact,), (rounded,) = (run_model(model, [rows], pages(wide.kv_geometry, 3, PAGE)) for model in (wide, narrow))
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()
    check_close(exact, expected_logits(oracle(checkpoint), ids, all_visible(9)))
