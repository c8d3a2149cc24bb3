"""Several processes compute what one does; every query head reads the key/value head that is its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffulex_core.distributed import ALONE, Communicator, Seat
from diffulex_core.errors import ConfigError
from diffulex_core.testing.thread_group import together
from diffulex_core.types import KVGeometry
from tests.families.gemma import CANVAS, VOCAB, Bench, Fed, load, native_model, save

TABLE = [3, 0, 4, 1]
PREFIX = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 query heads over 4 key/value heads in sliding layers and 2 in full ones."""
    path: Path = tmp_path_factory.mktemp("gemma")
    save(native_model(num_attention_heads=8, num_key_value_heads=4, num_global_key_value_heads=2), path)
    return path


def decode(folder: Path, tp: Communicator) -> tuple[Tensor, Tensor, Tensor]:
    """A first step, then one with self-conditioning: this process's logits of both and the embeddings between them."""
    bench = Bench(load(folder, tp=tp))
    tokens = torch.randint(0, VOCAB, (PREFIX + CANVAS,), generator=torch.Generator().manual_seed(1)).tolist()
    [first] = bench.logits(Fed(tokens=tokens, final_end=PREFIX, table=TABLE))
    soft = bench.soft(first[PREFIX:])
    [second] = bench.logits(Fed(tokens=tokens[PREFIX:], start=PREFIX, final_end=PREFIX, table=TABLE, soft=soft))
    return first, soft, second


@pytest.mark.parametrize("size", [2, 4])
def test_a_group_computes_what_one_process_does(folder: Path, size: int) -> None:
    first, soft, second = decode(folder, ALONE)
    answers = together(size, lambda tp: decode(folder, tp))
    for divided in (soft for _, soft, _ in answers):
        torch.testing.assert_close(divided, soft, rtol=1e-4, atol=1e-4)
    for whole, parts in ((first, [answer[0] for answer in answers]), (second, [answer[2] for answer in answers])):
        assert all(part.shape[1] == -(-VOCAB // size) for part in parts)
        torch.testing.assert_close(torch.cat(parts, dim=1)[:, :VOCAB], whole, rtol=1e-3, atol=1e-3)


def test_a_process_keeps_the_key_and_value_heads_that_its_query_heads_read(folder: Path) -> None:
    sliding, full = (
        KVGeometry(num_heads=2, num_kv_heads=1, head_dim=8),
        KVGeometry(num_heads=2, num_kv_heads=1, head_dim=16),
    )
    for rank in range(4):
        model = load(folder, tp=Seat(rank, 4))
        assert model.kv_geometry == (*[sliding] * 5, full)
        whole = load(folder)
        for name, head_dim, held in (("layers.0.attn.qkv", 8, rank), ("layers.5.attn.qk", 16, rank // 2)):
            mine, all_heads = (net.get_submodule(name).parts("weight")["k"].view for net in (model, whole))
            assert torch.equal(mine, all_heads[held * head_dim : (held + 1) * head_dim])


def test_a_group_that_does_not_divide_the_heads_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size 3 does not divide"):
        load(folder, tp=Seat(0, 3))
