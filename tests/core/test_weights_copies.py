"""A checkpoint may hold one tensor under several names, if the resolver says so and all of them are equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.errors import CheckpointError
from diffulex_core.layers.linear import Linear
from diffulex_core.weights import LoadContext, LoadReport, ResolvedWeight, WeightRules, load_weights
from tests.core.checkpoints import write_weights

CPU = torch.device("cpu")
WEIGHT = torch.arange(12.0).view(3, 4)


class Net(nn.Module):
    """Takes "one.out", "two.out" and so on for the same tensor; "rival.out" says nothing of copies."""

    def __init__(self) -> None:
        super().__init__()
        self.out = Linear(BuildContext(dtype=torch.float32, device=torch.device("meta")), 4, 3)

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        return ResolvedWeight(param=self.out.weight, copied=name != "rival.out")


def stored(*names: str) -> dict[str, Tensor]:
    return {name: WEIGHT.clone() for name in names}


def load(model: nn.Module, folder: Path) -> LoadReport:
    return load_weights(model, WeightRules(), folder, {}, dtype=torch.float32, device=CPU, progress=False)


@pytest.mark.parametrize("names", [["one.out"], ["two.out", "one.out"], ["one.out", "two.out", "three.out"]])
def test_copies_may_stand_under_any_number_of_names_when_equal(tmp_path: Path, names: list[str]) -> None:
    write_weights(tmp_path, stored(*names), len(names))
    model = Net()
    assert load(model, tmp_path).tensors == 1
    assert torch.equal(model.out.weight, WEIGHT)


def test_each_copy_that_differs_is_a_problem(tmp_path: Path) -> None:
    copies = stored("one.out", "two.out", "three.out")
    for name in ("three.out", "two.out"):
        copies[name][2, 3] += 1
    write_weights(tmp_path, copies)
    with pytest.raises(CheckpointError) as raised:
        load(Net(), tmp_path)
    assert len(raised.value.problems) == 2
    assert all("'one.out'" in problem and "differ" in problem for problem in raised.value.problems)


def test_a_tensor_beside_copies_that_is_none_is_a_double(tmp_path: Path) -> None:
    write_weights(tmp_path, stored("one.out", "rival.out"))
    with pytest.raises(CheckpointError, match=r"both fill 'out\.weight'"):
        load(Net(), tmp_path)
