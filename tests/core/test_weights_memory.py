"""No second copy of a model: besides the parameters at most one tensor of the checkpoint is in memory, or one pair."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from diffulex_core.context import BuildContext
from diffulex_core.distributed import ALONE, Communicator, Seat
from diffulex_core.distributed.ranges import even_range
from diffulex_core.layers.linear import Embedding, PackedLinear, RowLinear
from diffulex_core.weights import Rename, WeightRules, contents, dummy_weights, load_weights
from tests.core.checkpoints import write_weights

CPU = torch.device("cpu")
WIDTH, LAYERS, VOCAB = 64, 6, 256
LARGEST = VOCAB * WIDTH * 4
RULES = WeightRules(
    Rename("{i}.{a,b}", "layers.{i}.weight", shard="{a,b}"),
    Rename("{i}.out", "outs.{i}.weight"),
    Rename("embed", "embed.weight"),
    Rename("head", "head.weight"),
)


class Net(nn.Module):
    """Packed and divided layers, and a head that is tied to the embedding."""

    def __init__(self, tp: Communicator) -> None:
        super().__init__()
        ctx = BuildContext(dtype=torch.bfloat16, device=torch.device("meta"), tp=tp)
        held = even_range(WIDTH, tp, "width")
        self.embed, self.head = Embedding(ctx, VOCAB, WIDTH), Embedding(ctx, VOCAB, WIDTH)
        self.head.weight = self.embed.weight
        self.layers = nn.ModuleList(PackedLinear(ctx, WIDTH, {"a": held, "b": held}) for _ in range(LAYERS))
        self.outs = nn.ModuleList(RowLinear(ctx, WIDTH, WIDTH) for _ in range(LAYERS))


class Watch(TorchDispatchMode):
    """Counts the bytes of live tensors on the CPU that are no views of the model's."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.most = net, 0
        self.seen: dict[int, weakref.ref[Tensor]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.look(_pytree.tree_leaves((args, result)))
        return result

    def look(self, tensors: Sequence[object]) -> None:
        self.seen |= {id(tensor): weakref.ref(tensor) for tensor in tensors if isinstance(tensor, Tensor)}
        alive = [tensor for reference in self.seen.values() if (tensor := reference()) is not None]
        own = {parameter.untyped_storage().data_ptr() for parameter in self.net.parameters() if not parameter.is_meta}
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.nbytes
            for tensor in sorted(alive, key=lambda tensor: tensor.nbytes)
            if tensor.device == CPU and tensor.untyped_storage().data_ptr() not in own
        }
        self.most = max(self.most, sum(storages.values()))


def stored() -> dict[str, Tensor]:
    names = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("a", "b", "out")]
    tensors = {name: torch.rand(WIDTH, WIDTH) for name in names}
    table = torch.rand(VOCAB, WIDTH)
    return {**tensors, "embed": table, "head": table.clone()}


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("tp", [ALONE, Seat(1, 2)], ids=["alone", "second of two"])
def test_loading_holds_at_most_one_tensor_besides_the_model(tmp_path: Path, tp: Communicator, check: bool) -> None:
    write_weights(tmp_path, {name: tensor for name, tensor in stored().items() if name != "head"}, 3)
    net = Net(tp)
    with Watch(net) as watch:
        load_weights(net, RULES, tmp_path, {}, dtype=torch.bfloat16, device=CPU, progress=False, check=check)
    assert 0 < watch.most <= LARGEST


def test_comparing_tied_copies_holds_the_two_as_they_are_mapped_and_pieces_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "CHUNK", WIDTH)
    write_weights(tmp_path, stored(), 3)
    net = Net(ALONE)
    with Watch(net) as watch:
        load_weights(net, RULES, tmp_path, {}, dtype=torch.bfloat16, device=CPU, progress=False)
    assert LARGEST < watch.most <= 2 * LARGEST + 16 * WIDTH


@pytest.mark.parametrize("tp", [ALONE, Seat(1, 2)], ids=["alone", "second of two"])
def test_random_weights_take_one_tensor_besides_the_model(tp: Communicator) -> None:
    net = Net(tp)
    with Watch(net) as watch:
        dummy_weights(net, device=CPU)
    assert watch.most == LARGEST


def test_the_watch_sees_a_loader_that_reads_everything_first(tmp_path: Path) -> None:
    write_weights(tmp_path, stored())
    net = Net(ALONE)
    with Watch(net) as watch:
        everything = [tensor.to(torch.bfloat16) for tensor in stored().values()]
    assert watch.most > LARGEST
    assert len(everything) == 3 * LAYERS + 2
