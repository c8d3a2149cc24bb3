"""Loading a share: what the processes of a group hold, put together, is the checkpoint."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.distributed import Seat
from diffulex_core.distributed.ranges import even_range, kv_head_range, padded_range
from diffulex_core.errors import CheckpointError, ConfigError
from diffulex_core.layers.linear import Embedding, PackedLinear, RowLinear
from diffulex_core.weights import ResolvedWeight, load_weights
from diffulex_core.weights.types import LoadContext

CPU = torch.device("cpu")
HEADS, KV_HEADS, HEAD_DIM, HIDDEN, VOCAB = 8, 2, 2, 8, 13


class Net(nn.Module):
    """Every way in which a weight is divided."""

    def __init__(self, seat: Seat) -> None:
        super().__init__()
        ctx = BuildContext(dtype=torch.float32, device=torch.device("meta"), tp=seat)
        query = even_range(HEADS, seat, "heads").scaled(HEAD_DIM)
        key = kv_head_range(HEADS, KV_HEADS, seat).scaled(HEAD_DIM)
        self.embed = Embedding(ctx, VOCAB, HIDDEN)
        self.qkv = PackedLinear(ctx, HIDDEN, {"q": query, "k": key, "v": key}, bias=True)
        self.out = RowLinear(ctx, HEADS * HEAD_DIM, HIDDEN, bias=True)


def turned(tensor: Tensor) -> Tensor:
    return tensor.T.contiguous() if tensor.dim() == 2 else tensor


class Named:
    """Sends `qkv.q.weight` to a part and everything else to the parameter of its own name."""

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        module, _, rest = name.partition(".")
        part, _, leaf = rest.rpartition(".")
        target = ctx.parameters.get(f"{module}.{leaf}")
        return None if target is None else ResolvedWeight(param=target, shard_id=part or None)


class Transposed(Named):
    """As `Named`, for a checkpoint that stores everything but vectors transposed."""

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        found = super().resolve_checkpoint_weight(name, ctx)
        return None if found is None else attrs.evolve(found, transform=turned)


def checkpoint(*, stacked: bool) -> dict[str, Tensor]:
    width, kv_width = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (VOCAB, HIDDEN), "out.weight": (HIDDEN, width), "out.bias": (HIDDEN,),
    }  # fmt: skip
    if stacked:
        shapes |= {"qkv.weight": (width + 2 * kv_width, HIDDEN), "qkv.bias": (width + 2 * kv_width,)}
    else:
        for part, rows in (("q", width), ("k", kv_width), ("v", kv_width)):
            shapes |= {f"qkv.{part}.weight": (rows, HIDDEN), f"qkv.{part}.bias": (rows,)}
    total, made = 0, {}
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        made[name] = torch.arange(total + 1, total + 1 + count, dtype=torch.float32).view(shape)
        total += count
    return made


def load(folder: Path, seat: Seat, resolver: Named) -> Net:
    net = Net(seat)
    for parameter in net.parameters():
        assert parameter.is_meta
    load_weights(net, resolver, folder, {}, dtype=torch.float32, device=CPU, progress=False)
    return net


@pytest.mark.parametrize("resolver", [Named(), Transposed()], ids=["as stored", "transposed"])
@pytest.mark.parametrize("stacked", [False, True], ids=["parts", "stacked"])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_shares_put_together_are_the_checkpoint(tmp_path: Path, size: int, stacked: bool, resolver: Named) -> None:
    stored = checkpoint(stacked=stacked)
    written = {name: turned(tensor) for name, tensor in stored.items()} if isinstance(resolver, Transposed) else stored
    save_file(written, tmp_path / "model.safetensors")
    nets = [load(tmp_path, Seat(rank, size), resolver) for rank in range(size)]
    plain = checkpoint(stacked=False)
    copies = max(1, size // KV_HEADS)
    for leaf in ("weight", "bias"):
        for part, step in (("q", 1), ("k", copies), ("v", copies)):
            held = [net.qkv.parts(leaf)[part].view for net in nets[::step]]
            assert torch.equal(torch.cat(held), _part(stored, part, leaf) if stacked else plain[f"qkv.{part}.{leaf}"])
            for first, net in zip((n for n in nets[::step] for _ in range(step)), nets, strict=True):
                assert torch.equal(first.qkv.parts(leaf)[part].view, net.qkv.parts(leaf)[part].view)
    assert torch.equal(torch.cat([net.out.weight for net in nets], dim=1), stored["out.weight"])
    assert all(torch.equal(net.out.bias, stored["out.bias"]) for net in nets if net.out.bias is not None)
    rows = torch.cat([net.embed.weight for net in nets])
    assert torch.equal(rows[:VOCAB], stored["embed.weight"])
    assert not rows[VOCAB:].any()


def _part(stored: dict[str, Tensor], part: str, leaf: str) -> Tensor:
    width, kv_width = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    return dict(zip("qkv", stored[f"qkv.{leaf}"].split((width, kv_width, kv_width)), strict=True))[part]


def test_a_wrong_shape_is_named_by_the_whole_tensors_shape_on_every_rank(tmp_path: Path) -> None:
    stored = checkpoint(stacked=False)
    stored["out.weight"] = stored["out.weight"][:, :-1].contiguous()
    save_file(stored, tmp_path / "model.safetensors")
    for rank in range(2):
        with pytest.raises(
            CheckpointError, match=r"'out\.weight' in .* has shape \[8, 15\], but 'out\.weight' has \[8, 16"
        ):
            load(tmp_path, Seat(rank, 2), Named())


@given(st.integers(1, 300), st.integers(1, 8))
def test_padded_ranges_cover_a_vocabulary_once_and_in_order(vocab: int, size: int) -> None:
    ranges = [padded_range(vocab, Seat(rank, size)) for rank in range(size)]
    assert len({padded for _, padded in ranges}) == 1
    assert [index for held, _ in ranges for index in range(held.start, held.start + held.length)] == list(range(vocab))
    assert all(held.length <= padded for held, padded in ranges)
    assert all(held.start == rank * padded or not held.length for rank, (held, padded) in enumerate(ranges))


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_each_query_head_finds_its_key_value_head_on_its_own_rank(kv_log: int, group_log: int, size_log: int) -> None:
    kv_heads, size = 2**kv_log, 2**size_log
    heads = kv_heads * 2**group_log
    if heads % size:
        return
    for rank in range(size):
        seat = Seat(rank, size)
        query, key = even_range(heads, seat, "heads"), kv_head_range(heads, kv_heads, seat)
        per_key = query.length // key.length
        for local in range(query.length):
            assert (query.start + local) // (heads // kv_heads) == key.start + local // per_key


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(6, 6, 4), (12, 3, 2), (12, 3, 4), (8, 8, 3)])
def test_heads_that_cannot_be_divided_are_an_error(heads: int, kv_heads: int, size: int) -> None:
    with pytest.raises(ConfigError, match=f"tensor_parallel_size {size}"):
        kv_head_range(heads, kv_heads, Seat(0, size))
