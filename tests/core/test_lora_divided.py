"""An adapter over a divided network: the shares of all processes together compute what one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffulex_core.distributed import ALONE, Communicator, Seat
from diffulex_core.layers.linear import Multiplies
from diffulex_core.testing.thread_group import ThreadGroup, together
from tests.core.checkpoints import Checkpoint
from tests.core.lora_families import CASES, EXPERTS_FAMILY, LLADA_CASE, write_experts
from tests.core.lora_kit import Family, adapter_tensors, linear_shapes, logits, random_matrices, write_adapter


def everything(base: Checkpoint, folder: Path, rank: int = 5) -> Path:
    """An adapter over every linear layer of a checkpoint, the head included."""
    shapes = linear_shapes(base)
    return write_adapter(
        folder, adapter_tensors(random_matrices(shapes, rank)), r=rank, lora_alpha=3, target_modules=sorted(shapes)
    )


def check(family: Family, base: Checkpoint, adapter: Path, *, size: int, merge: bool) -> None:
    alone = logits(family.adapted(base, adapter, merge=merge))
    assert (alone - logits(family.load(base))).abs().max() > 0.1
    shares = together(size, lambda tp: logits(family.adapted(base, adapter, merge=merge, tp=tp)))
    # Columns of padding stay zero, whatever the adapter.
    whole = torch.cat(shares, -1)
    assert not whole[:, alone.shape[1] :].any()
    torch.testing.assert_close(whole[:, : alone.shape[1]], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("merge", [False, True], ids=["beside", "merged"])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_a_group_computes_what_one_process_does(tmp_path: Path, name: str, size: int, merge: bool) -> None:
    # 4 query heads, 2 key/value heads: with 4 processes, neighbours hold the same key/value head.
    base = CASES[name].write(tmp_path / "base")
    check(CASES[name].family, base, everything(base, tmp_path / "adapter"), size=size, merge=merge)


@pytest.mark.parametrize("size", [2, 4])
def test_experts_that_are_held_elsewhere_take_nothing(tmp_path: Path, size: int) -> None:
    base = write_experts(tmp_path / "base")
    check(EXPERTS_FAMILY, base, everything(base, tmp_path / "adapter"), size=size, merge=True)


def products(base: Checkpoint, adapter: Path, tp: Communicator, name: str) -> tuple[Multiplies, Tensor]:
    """A layer of LLaDA at one seat, and the weight that its product beside the weight amounts to."""
    model = LLADA_CASE.family.adapted(base, adapter, merge=False, tp=tp)
    assert isinstance(model, nn.Module)
    layer = model.get_submodule(name)
    assert isinstance(layer, Multiplies)
    zero = torch.zeros_like(layer.weight)
    return layer, layer.multiply(torch.eye(zero.shape[1]), zero, None).T


@pytest.mark.parametrize("size", [2, 4])
def test_a_row_divided_layers_addends_sum_to_the_whole(tmp_path: Path, size: int) -> None:
    base = LLADA_CASE.write(tmp_path / "base")
    adapter = everything(base, tmp_path / "adapter")
    _, whole = products(base, adapter, ALONE, "layers.0.mlp.down")
    shares = [products(base, adapter, Seat(rank, size), "layers.0.mlp.down")[1] for rank in range(size)]
    torch.testing.assert_close(torch.cat(shares, 1), whole, atol=1e-5, rtol=1e-5)


def test_a_packed_layers_shares_are_those_of_its_parts(tmp_path: Path) -> None:
    base = LLADA_CASE.write(tmp_path / "base")
    adapter = everything(base, tmp_path / "adapter")
    _, whole = products(base, adapter, ALONE, "layers.0.attn.qkv")
    q, k, v = whole.split((32, 16, 16))
    for rank in range(4):
        _, share = products(base, adapter, Seat(rank, 4), "layers.0.attn.qkv")
        head, kv = slice(8 * rank, 8 * rank + 8), slice(8 * (rank // 2), 8 * (rank // 2) + 8)
        torch.testing.assert_close(share, torch.cat([q[head], k[kv], v[kv]]), atol=1e-5, rtol=1e-5)


def test_an_adapter_adds_no_exchange_between_the_processes(tmp_path: Path) -> None:
    base = LLADA_CASE.write(tmp_path / "base")
    adapter = everything(base, tmp_path / "adapter")
    plain, adapted = ThreadGroup(2), ThreadGroup(2)
    plain.run(lambda tp: logits(LLADA_CASE.family.load(base, tp=tp)))
    adapted.run(lambda tp: logits(LLADA_CASE.family.adapted(base, adapter, merge=False, tp=tp)))
    assert adapted.log == plain.log
    assert [said.kind for said in plain.log] == ["sum"] * 5  # the embedding, and two for each layer


def test_the_product_is_two_multiplications_beside_the_base(tmp_path: Path) -> None:
    base = LLADA_CASE.write(tmp_path / "base")
    layer, added = products(base, everything(base, tmp_path / "adapter"), ALONE, "layers.1.attn.out")
    x, bias = torch.randn(8, 32), torch.randn(32)
    expected = functional.linear(x, layer.weight + added, bias)
    torch.testing.assert_close(layer.multiply(x, layer.weight, bias), expected, atol=1e-4, rtol=1e-4)
