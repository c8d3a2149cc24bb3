"""Stacked experts are filled from every way in which checkpoints store them, and faults are named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.distributed import ALONE, Communicator, Seat
from diffulex_core.errors import CheckpointError
from diffulex_core.layers.moe.experts import Experts
from diffulex_core.weights import STANDARD_EXPERTS, WeightRules, load_weights

EXPERTS, HIDDEN, SIZE = 4, 6, 6
MLP = "model.layers.0.mlp"
RULES = WeightRules(*STANDARD_EXPERTS)


class Net(nn.Module):
    """A network with one layer of experts and nothing else."""

    def __init__(self, tp: Communicator = ALONE) -> None:
        super().__init__()
        ctx = BuildContext(dtype=torch.float32, device=torch.device("meta"), tp=tp)
        layer, mlp = nn.Module(), nn.Module()
        mlp.experts = Experts(ctx, num_experts=EXPERTS, hidden_size=HIDDEN, expert_size=SIZE, activation="silu")
        layer.mlp = mlp
        self.layers = nn.ModuleList([layer])


def apart() -> dict[str, Tensor]:
    """One tensor for each expert, of distinct numbers; all are square, so that no shape tells them apart."""
    made, start = dict[str, Tensor](), 0
    for expert in range(EXPERTS):
        for part, shape in (("gate", (SIZE, HIDDEN)), ("up", (SIZE, HIDDEN)), ("down", (HIDDEN, SIZE))):
            count = shape[0] * shape[1]
            made[f"{MLP}.experts.{expert}.{part}_proj.weight"] = torch.arange(start, start + count).view(shape).float()
            start += count
    return made


def stacked(part: str) -> Tensor:
    return torch.stack([apart()[f"{MLP}.experts.{expert}.{part}_proj.weight"] for expert in range(EXPERTS)])


MERGED = {f"{MLP}.experts.{part}_proj": stacked(part) for part in ("gate", "up", "down")}
FUSED = {
    f"{MLP}.experts.gate_up_proj": torch.cat((stacked("gate"), stacked("up")), dim=1),
    f"{MLP}.experts.down_proj": stacked("down"),
}
MIXED = {
    **{name: tensor for name, tensor in apart().items() if "up_proj" in name},
    f"{MLP}.experts.gate_proj": stacked("gate"),
    f"{MLP}.experts.down_proj": stacked("down"),
}


def load(folder: Path, tensors: Mapping[str, Tensor], tp: Communicator = ALONE) -> Experts:
    save_file(dict(tensors), folder / "model.safetensors")
    net = Net(tp)
    load_weights(net, RULES, folder, {}, dtype=torch.float32, device=torch.device("cpu"), progress=False)
    experts = net.layers[0].mlp.experts
    assert isinstance(experts, Experts)
    return experts


def problems(folder: Path, tensors: Mapping[str, Tensor], tp: Communicator = ALONE) -> list[str]:
    with pytest.raises(CheckpointError) as raised:
        load(folder, tensors, tp)
    return list(raised.value.problems)


@pytest.mark.parametrize("tensors", [apart(), MERGED, FUSED, MIXED], ids=["apart", "merged", "fused", "mixed"])
def test_every_way_of_storing_experts_gives_the_same_weights(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    experts = load(tmp_path, tensors)
    assert torch.equal(experts.w13, torch.cat((stacked("gate"), stacked("up")), dim=1))
    assert torch.equal(experts.w2, stacked("down"))


@pytest.mark.parametrize("tensors", [apart(), MERGED, FUSED, MIXED], ids=["apart", "merged", "fused", "mixed"])
@pytest.mark.parametrize("size", [2, 4])
def test_each_process_takes_its_own_experts(tmp_path: Path, tensors: dict[str, Tensor], size: int) -> None:
    shares = [load(tmp_path, tensors, Seat(rank, size)) for rank in range(size)]
    assert {len(share.w2) for share in shares} == {EXPERTS // size}
    assert torch.equal(torch.cat([share.w13 for share in shares]), FUSED[f"{MLP}.experts.gate_up_proj"])
    assert torch.equal(torch.cat([share.w2 for share in shares]), stacked("down"))


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    tensors = apart()
    del tensors[f"{MLP}.experts.2.up_proj.weight"], tensors[f"{MLP}.experts.3.down_proj.weight"]
    for tp in (ALONE, Seat(0, 2)):
        first, second = problems(tmp_path, tensors, tp)
        assert f"(part '2.up') [6, 6]: the checkpoint has no '{MLP}.experts.2.up_proj.weight'" in first
        assert f"(part '3') [6, 6]: the checkpoint has no '{MLP}.experts.3.down_proj.weight'" in second


def test_experts_that_are_missing_altogether_take_one_sentence_with_the_names_that_they_could_have(
    tmp_path: Path,
) -> None:
    tensors = {name: tensor for name, tensor in apart().items() if "gate_proj" not in name}
    [problem] = problems(tmp_path, tensors)
    assert "'layers.0.mlp.experts.w13' (part 'gate') [4, 6, 6]" in problem
    assert f"has no '{MLP}.experts.gate_proj' or '{MLP}.experts.0.gate_proj.weight'" in problem


def test_experts_that_are_stored_twice_are_refused(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, {**apart(), f"{MLP}.experts.gate_proj": stacked("gate")})
    assert "both fill 'layers.0.mlp.experts.w13'" in problem
    found = problems(tmp_path, {**MERGED, f"{MLP}.experts.1.down_proj.weight": torch.zeros(HIDDEN, SIZE)})
    assert len(found) == 1
    assert "both fill" in found[0]


def test_the_shape_of_an_expert_that_another_process_holds_is_checked_too(tmp_path: Path) -> None:
    tensors = {**apart(), f"{MLP}.experts.3.gate_proj.weight": torch.zeros(SIZE - 1, HIDDEN)}
    [problem] = problems(tmp_path, tensors, Seat(0, 2))
    assert "has shape [5, 6], but 'layers.0.mlp.experts.w13' (part '3.gate') has [6, 6]" in problem


@pytest.mark.parametrize("name", ["4.gate_proj", "4.down_proj"])
def test_an_expert_too_many_has_no_place(tmp_path: Path, name: str) -> None:
    [problem] = problems(tmp_path, {**apart(), f"{MLP}.experts.{name}.weight": torch.zeros(SIZE, HIDDEN)})
    assert f"'{MLP}.experts.{name}.weight'" in problem
    assert "has no place in this model" in problem
