"""Comparing a network's logits with an oracle from transformers, whole and cached."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.protocols import AttentionBackend, DiffusionModel
from tests.core.forward import Rows, all_visible, block_causal, pages, run_model

PAGE = 4
TOLERANCE = 1e-4


def lengths(block: int) -> tuple[int, ...]:
    """A lone token, around one block, and several blocks with a rest."""
    return (1, block - 1, block, block + 1, 3 * block + 2)


def token_ids(length: int, vocab_size: int) -> Tensor:
    return torch.randint(0, vocab_size, (length,), generator=torch.Generator().manual_seed(length))


def oracle_logits(oracle: PreTrainedModel, ids: Tensor, key_end: Sequence[int]) -> Tensor:
    """[rows, vocab] of a whole sequence whose row `i` sees `[0, key_end[i])`, by an explicit 4-D mask."""
    positions = torch.arange(len(ids))
    with torch.no_grad():
        output = oracle(
            input_ids=ids[None],
            position_ids=positions[None],
            attention_mask=_mask(key_end, len(ids)),
            use_cache=False,
        )
    logits: Tensor = output.logits[0].float()
    return logits


def cached_oracle_logits(oracle: PreTrainedModel, ids: Tensor, block: int) -> Tensor:
    """[rows, vocab] of block-causal decoding with the oracle's own cache: each block is fed once, over those before."""
    cache, found = DynamicCache(), []
    with torch.no_grad():
        for start in range(0, len(ids), block):
            end = min(start + block, len(ids))
            output = oracle(
                input_ids=ids[None, start:end],
                position_ids=torch.arange(start, end)[None],
                attention_mask=_mask([end] * (end - start), end),
                past_key_values=cache,
                use_cache=True,
            )
            found.append(output.logits[0].float())
    return torch.cat(found)


def check_whole(model: DiffusionModel, oracle: PreTrainedModel, *, block: int) -> None:
    """Logits of whole sequences are the oracle's, with all positions visible and block-causally."""
    for length in lengths(block):
        ids = token_ids(length, model.vocab_size)
        for key_end in (all_visible(length), block_causal(length, block)):
            count = -(-length // PAGE)
            rows = Rows(tokens=ids.tolist(), key_end=key_end, table=list(reversed(range(count))))
            (got,) = run_model(model, [rows], pages(model.kv_geometry, count, PAGE))
            check_close(got, oracle_logits(oracle, ids, key_end))


def check_cached(
    model: DiffusionModel, oracle: PreTrainedModel, *, block: int, backend: AttentionBackend | None = None
) -> None:
    """Decoding block by block over cached K/V gives the oracle's logits, whole and over its own cache.

    Each block is fed with other tokens first, as a denoising step does: only the last pass over it may count.
    """
    for length in lengths(block):
        ids = token_ids(length, model.vocab_size)
        expected = oracle_logits(oracle, ids, block_causal(length, block))
        check_close(cached_oracle_logits(oracle, ids, block), expected)
        count = -(-length // PAGE)
        store = pages(model.kv_geometry, count, PAGE, fill=float("nan"))
        for start in range(0, length, block):
            end = min(start + block, length)
            for tokens in ((ids[start:end] + 7) % model.vocab_size, ids[start:end]):
                rows = Rows(
                    tokens=tokens.tolist(), start=start, key_end=all_visible(end)[start:], table=list(range(count))
                )
                (got,) = run_model(model, [rows], store, backend=backend or TorchCPU())
            check_close(got, expected[start:end])


def check_close(got: Tensor, expected: Tensor, *, tolerance: float = TOLERANCE) -> None:
    assert got.shape == expected.shape
    torch.testing.assert_close(got.float(), expected, atol=tolerance, rtol=tolerance)


def _mask(key_end: Sequence[int], keys: int) -> Tensor:
    allowed = torch.arange(keys)[None] < torch.tensor(key_end)[:, None]
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None]
