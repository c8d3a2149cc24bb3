"""Numbers of a checkpoint: NaN and infinity on request, kinds of dtype, tied copies beside other faults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.errors import CheckpointError
from diffulex_core.layers.linear import Linear
from diffulex_core.weights import LoadContext, ResolvedWeight, WeightRules, contents, load_weights
from tests.core.checkpoints import write_weights

CPU = torch.device("cpu")


class Net(nn.Module):
    """Two layers, of which `again` may be tied to `first`, and a counter of whole numbers."""

    steps: Tensor

    def __init__(self, dtype: torch.dtype = torch.float32, *, tied: bool = False) -> None:
        super().__init__()
        ctx = BuildContext(dtype=dtype, device=torch.device("meta"))
        self.first, self.again = Linear(ctx, 3, 4), Linear(ctx, 3, 4)
        if tied:
            self.again.weight = self.first.weight
        self.register_buffer("steps", torch.empty(2, dtype=torch.int64, device="meta"))


def stored() -> dict[str, Tensor]:
    return {
        "first.weight": torch.arange(12.0).view(4, 3), "again.weight": torch.arange(12.0, 24.0).view(4, 3),
        "steps": torch.tensor([7, 8]),
    }  # fmt: skip


def load(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    files: int = 1,
    net: Net | None = None,
    check: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Net:
    write_weights(folder, tensors, files)
    net = net or Net(dtype)
    load_weights(
        net,
        WeightRules(),
        folder,
        {},
        dtype=dtype,
        device=CPU,
        progress=False,
        check=check,
        owner="the family 'f' (d 1)",
    )
    return net


def problems_of(folder: Path, tensors: Mapping[str, Tensor], *, files: int = 1, net: Net | None = None) -> list[str]:
    with pytest.raises(CheckpointError) as raised:
        load(folder, tensors, files=files, net=net)
    assert raised.value.owner == "the family 'f' (d 1)"
    assert str(raised.value).startswith(f"Cannot load {folder} into the family 'f' (d 1):\n  - ")
    return list(raised.value.problems)


def test_every_tensor_with_nan_or_infinity_is_named_with_its_file_and_parameter(tmp_path: Path) -> None:
    tensors = stored()
    tensors["first.weight"][2, 1] = torch.nan
    tensors["again.weight"][0, 2] = -torch.inf
    tensors["again.weight"][3, 0] = torch.nan
    first, second = problems_of(tmp_path, tensors, files=2)
    assert first == (
        "'first.weight' in model-00001-of-00002.safetensors (F32) gives 'first.weight' 1 NaN and 0 infinite numbers"
        " of 12 in float32, the first at [2, 1]."
    )
    assert second == (
        "'again.weight' in model-00002-of-00002.safetensors (F32) gives 'again.weight' 1 NaN and 1 infinite numbers"
        " of 12 in float32, the first at [0, 2]."
    )


def test_without_the_check_nan_is_loaded_as_it_is(tmp_path: Path) -> None:
    tensors = stored()
    tensors["first.weight"][2, 1] = torch.nan
    assert load(tmp_path, tensors, check=False).first.weight.isnan().sum() == 1


def test_sound_weights_pass_the_check(tmp_path: Path) -> None:
    net = load(tmp_path, stored())
    assert torch.equal(net.first.weight, stored()["first.weight"])
    assert net.steps.tolist() == [7, 8]


def test_a_number_too_large_for_the_dtype_is_found(tmp_path: Path) -> None:
    tensors = stored()
    tensors["first.weight"][1, 1] = 1e5
    assert load(tmp_path, tensors, dtype=torch.bfloat16).first.weight.isfinite().all()
    [problem] = problems_of(tmp_path, tensors, net=Net(torch.float16))
    assert "0 NaN and 1 infinite numbers of 12 in float16, the first at [1, 1]" in problem


def test_a_loader_of_a_plugin_is_checked_as_well(tmp_path: Path) -> None:
    class Own(Net):
        def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
            if name != "first.weight":
                return None
            return ResolvedWeight(param=self.first.weight, loader=lambda tensor: self.first.weight.copy_(tensor / 0))

    [problem] = problems_of(tmp_path, stored(), net=Own())
    assert "'first.weight'" in problem
    assert "1 NaN and 11 infinite" in problem


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("first.weight", torch.zeros(4, 3, dtype=torch.int32), "holds I32, but 'first.weight' takes floating-point"),
        ("first.weight", torch.zeros(4, 3, dtype=torch.bool), "holds BOOL, but 'first.weight' takes floating-point"),
        ("steps", torch.zeros(2), "holds F32, but 'steps' takes whole numbers"),
        ("steps", torch.zeros(2, dtype=torch.bfloat16), "holds BF16, but 'steps' takes whole numbers"),
    ],
)
def test_kinds_of_numbers_are_not_mixed(tmp_path: Path, name: str, tensor: Tensor, words: str) -> None:
    [problem] = problems_of(tmp_path, {**stored(), name: tensor})
    assert problem.startswith(f"'{name}' in model.safetensors {words}")


def test_a_transform_may_change_the_kind(tmp_path: Path) -> None:
    class Scaled(Net):
        def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
            if name != "first.weight":
                return None
            return ResolvedWeight(param=self.first.weight, transform=lambda stored: stored.float() / 2)

    net = load(tmp_path, {**stored(), "first.weight": torch.arange(12).view(4, 3).to(torch.int8)}, net=Scaled())
    assert torch.equal(net.first.weight, torch.arange(12.0).view(4, 3) / 2)


def test_tied_copies_that_differ_are_found_beside_a_damaged_file(tmp_path: Path) -> None:
    write_weights(tmp_path, {**stored(), "more": torch.zeros(1)}, 4)
    (tmp_path / "model-00003-of-00004.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError) as raised:
        load_weights(Net(tied=True), WeightRules(), tmp_path, {}, dtype=torch.float32, device=CPU, progress=False)
    damaged, extra, differ = raised.value.problems
    assert damaged.startswith("model-00003-of-00004.safetensors is damaged or cut off (3 bytes")
    assert damaged.endswith(", and with it 'steps'. Download it again.")
    assert "'more'" in extra
    assert differ == (
        "'first.weight' in model-00001-of-00004.safetensors and 'again.weight' in model-00002-of-00004.safetensors"
        " differ, but the model ties them ('first.weight' = 'again.weight')."
    )


@pytest.mark.parametrize("at", [0, 5, 11])
def test_tied_copies_are_compared_to_the_last_number_whatever_the_size_of_a_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    equal = {**stored(), "again.weight": stored()["first.weight"].clone()}
    equal["first.weight"][0, 0] = equal["again.weight"][0, 0] = torch.nan
    for chunk in (1, 4, 5, 100):
        monkeypatch.setattr(contents, "CHUNK", chunk)
        load(tmp_path, equal, net=Net(tied=True), check=False)
        changed = {**equal, "again.weight": equal["again.weight"].clone()}
        changed["again.weight"].view(-1)[at] = -1
        [problem] = problems_of(tmp_path, changed, net=Net(tied=True))
        assert "differ, but the model ties them" in problem


def test_tied_copies_are_compared_as_they_would_be_stored(tmp_path: Path) -> None:
    tensors = {**stored(), "again.weight": stored()["first.weight"] * (1 + 1e-5)}
    load(tmp_path, tensors, net=Net(torch.bfloat16, tied=True), dtype=torch.bfloat16)
    [problem] = problems_of(tmp_path, tensors, net=Net(tied=True))
    assert "differ" in problem
