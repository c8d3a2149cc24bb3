"""Loading: the books must balance, and one error lists everything that does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.distributed.ranges import whole
from diffulex_core.errors import ALIKE, EXAMPLES, CheckpointError, PluginError
from diffulex_core.layers.linear import Linear, PackedLinear
from diffulex_core.weights import LoadContext, LoadReport, Rename, ResolvedWeight, Skip, WeightRules, load_weights
from tests.core.checkpoints import write_weights

CPU = torch.device("cpu")
RULES = WeightRules(
    Rename("ck.{q,k}.{weight,bias}", "qk.{weight,bias}", shard="{q,k}"),
    Rename("ck.out.weight", "out.weight"),
    Rename("ck.scale", "scale"),
    Rename("ck.tied.weight", "again.weight"),
    Skip("ck.vision.*", "text only"),
)


class Net(nn.Module):
    """One of everything: a packed layer with bias, a plain one, and a persistent fp32 buffer."""

    scale: Tensor

    def __init__(self, dtype: torch.dtype = torch.float32, *, tied: bool = False, device: str = "meta") -> None:
        super().__init__()
        ctx = BuildContext(dtype=dtype, device=torch.device(device))
        self.qk = PackedLinear(ctx, 3, {"q": whole(4), "k": whole(2)}, bias=True)
        self.out = Linear(ctx, 6, 3)
        self.register_buffer("scale", torch.empty(2, dtype=torch.float32, device=device))
        if tied:
            self.again = Linear(ctx, 6, 3)
            self.again.weight = self.out.weight


def tensors() -> dict[str, Tensor]:
    """Distinct whole numbers everywhere, so that a value in the wrong place shows."""
    shapes = {
        "ck.q.weight": (4, 3), "ck.q.bias": (4,), "ck.k.weight": (2, 3), "ck.k.bias": (2,), "ck.out.weight": (3, 6),
        "ck.scale": (2,),
    }  # fmt: skip
    counter, made = 0, {}
    for name, shape in shapes.items():
        size = torch.Size(shape).numel()
        made[name] = torch.arange(counter, counter + size, dtype=torch.float32).view(shape)
        counter += size
    return made


def load(model: nn.Module, folder: Path, dtype: torch.dtype = torch.float32, rules: object = RULES) -> LoadReport:
    assert isinstance(rules, WeightRules)
    return load_weights(model, rules, folder, {}, dtype=dtype, device=CPU, progress=False)


def problems_of(folder: Path, model: nn.Module | None = None) -> tuple[str, ...]:
    with pytest.raises(CheckpointError) as raised:
        load(model or Net(), folder)
    assert raised.value.where == str(folder)
    return raised.value.problems


def check_contents(model: nn.Module, expected: Mapping[str, Tensor] | None = None) -> None:
    expected = expected or tensors()
    state = model.state_dict()
    assert torch.equal(state["qk.weight"], torch.cat((expected["ck.q.weight"], expected["ck.k.weight"])))
    assert torch.equal(state["qk.bias"], torch.cat((expected["ck.q.bias"], expected["ck.k.bias"])))
    assert torch.equal(state["out.weight"], expected["ck.out.weight"])
    assert torch.equal(state["scale"], expected["ck.scale"])


@pytest.mark.parametrize("files", [1, 2, 3])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_every_value_lands_in_its_place(tmp_path: Path, files: int, device: str) -> None:
    write_weights(tmp_path, tensors(), files)
    model = Net(device=device)
    for tensor in model.state_dict(keep_vars=True).values():
        tensor.data.fill_(float("nan"))
    report = load(model, tmp_path)
    check_contents(model)
    assert (report.tensors, report.bytes, len(report.files)) == (6, 4 * 44, files)
    assert not model.training


def test_files_and_tensors_in_another_order_load_the_same(tmp_path: Path) -> None:
    names = sorted(tensors(), reverse=True)
    for index, name in enumerate(names):
        save_file({name: tensors()[name]}, tmp_path / f"part-{index}.safetensors")
    model = Net()
    assert load(model, tmp_path).files == tuple(f"part-{index}.safetensors" for index in range(6))
    check_contents(model)


def test_files_that_the_index_does_not_name_are_ignored(tmp_path: Path) -> None:
    write_weights(tmp_path, tensors(), 2)
    save_file({"stray": torch.zeros(1), "ck.scale": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    model = Net()
    load(model, tmp_path)
    check_contents(model)


def test_without_an_index_the_single_file_comes_before_others(tmp_path: Path) -> None:
    write_weights(tmp_path, tensors())
    save_file({"stray": torch.zeros(1)}, tmp_path / "adapter.safetensors")
    model = Net()
    load(model, tmp_path)
    check_contents(model)


def test_values_take_the_dtype_of_their_parameter_and_fp32_buffers_stay_fp32(tmp_path: Path) -> None:
    write_weights(tmp_path, {name: tensor.double() / 3 for name, tensor in tensors().items()})
    model = Net(torch.bfloat16)
    load(model, tmp_path, torch.bfloat16)
    assert model.out.weight.dtype == torch.bfloat16
    assert torch.equal(model.out.weight, (tensors()["ck.out.weight"].double() / 3).bfloat16())
    assert torch.equal(model.scale, (tensors()["ck.scale"].double() / 3).float())


def test_skipped_tensors_are_reported_with_the_reason(tmp_path: Path) -> None:
    write_weights(tmp_path, {**tensors(), "ck.vision.0": torch.zeros(2)})
    assert load(Net(), tmp_path).skipped == {"ck.vision.0": "text only"}


def test_a_tensor_may_carry_the_models_own_name(tmp_path: Path) -> None:
    own = tensors()
    own["out.weight"] = own.pop("ck.out.weight")
    own["scale"] = own.pop("ck.scale")
    write_weights(tmp_path, own)
    model = Net()
    load(model, tmp_path)
    check_contents(model)


def test_a_packed_parameter_may_be_stored_in_one_piece(tmp_path: Path) -> None:
    stored = tensors()
    stored["qk.weight"] = torch.cat((stored.pop("ck.q.weight"), stored.pop("ck.k.weight")))
    write_weights(tmp_path, stored)
    model = Net()
    load(model, tmp_path)
    check_contents(model)


def test_all_faults_are_listed_in_one_error_and_nothing_is_copied(tmp_path: Path) -> None:
    stored = tensors()
    del stored["ck.k.weight"], stored["ck.scale"]
    stored["ck.q.bias"] = torch.zeros(5)
    stored["ck.out.weight"] = stored["ck.out.weight"].T.contiguous()
    stored["ck.surprise"] = torch.zeros(1, 2)
    stored["qk.bias"] = torch.zeros(6)
    write_weights(tmp_path, stored)
    model = Net(device="cpu")
    model.out.weight.data.fill_(7.0)

    problems = problems_of(tmp_path, model)

    assert sorted(problems) == sorted([
        "Nothing fills 'qk.weight' (part 'k') [2, 3]: the checkpoint has no 'ck.k.weight'.",
        "Nothing fills 'scale' [2]: the checkpoint has no 'ck.scale'.",
        "'ck.q.bias' in model.safetensors has shape [5], but 'qk.bias' (part 'q') has [4].",
        "'ck.out.weight' in model.safetensors has shape [6, 3], but 'out.weight' has [3, 6].",
        "'ck.surprise' [1, 2] in model.safetensors has no place in this model.",
        "'ck.q.bias' in model.safetensors and 'qk.bias' in model.safetensors both fill 'qk.bias'.",
    ])  # fmt: skip
    assert torch.equal(model.out.weight, torch.full((3, 6), 7.0))


@pytest.mark.parametrize("shape", [(3, 1), (1,), (), (1, 3, 6), (18,)])
def test_a_shape_is_never_broadcast_or_reshaped(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_weights(tmp_path, {**tensors(), "ck.out.weight": torch.zeros(shape)})
    assert problems_of(tmp_path) == (
        f"'ck.out.weight' in model.safetensors has shape {list(shape)}, but 'out.weight' has [3, 6].",
    )


def test_integers_do_not_become_weights(tmp_path: Path) -> None:
    write_weights(tmp_path, {**tensors(), "ck.out.weight": torch.zeros(3, 6, dtype=torch.int8)})
    (problem,) = problems_of(tmp_path)
    assert problem == "'ck.out.weight' in model.safetensors holds I8, but 'out.weight' takes floating-point numbers."


def test_a_tensor_in_two_files_is_stored_twice(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a.safetensors")
    save_file({"ck.scale": tensors()["ck.scale"]}, tmp_path / "b.safetensors")
    assert problems_of(tmp_path) == ("'ck.scale' is stored twice, in a.safetensors and in b.safetensors.",)


@pytest.mark.parametrize("keep", [0, 4, 60, -8])
def test_a_truncated_file_is_named_and_its_tensors_are_not_called_missing(tmp_path: Path, keep: int) -> None:
    write_weights(tmp_path, tensors(), 2)
    path = tmp_path / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    (problem,) = problems_of(tmp_path)
    assert problem.startswith("model-00002-of-00002.safetensors is damaged or cut off")


def test_a_truncated_single_file_is_the_only_problem(tmp_path: Path) -> None:
    write_weights(tmp_path, tensors())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = problems_of(tmp_path)
    assert "model.safetensors is damaged or cut off" in problem


def test_a_missing_file_of_the_index_is_named_along_with_other_faults(tmp_path: Path) -> None:
    write_weights(tmp_path, {**tensors(), "ck.surprise": torch.zeros(1)}, 7)
    (tmp_path / "model-00001-of-00007.safetensors").unlink()
    missing, extra = problems_of(tmp_path)
    assert missing == "model-00001-of-00007.safetensors is missing, and with it 'ck.q.weight'. Download it again."
    assert "'ck.surprise'" in extra


def test_an_index_that_promises_a_tensor_too_many_is_reported(tmp_path: Path) -> None:
    write_weights(tmp_path, tensors(), 2)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["ck.vision.1"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    (problem,) = problems_of(tmp_path)
    assert "'ck.vision.1'" in problem
    assert "model-00001-of-00002.safetensors" in problem


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../x.safetensors"}}',
     '{"weight_map": {"a": ".."}}', '{"weight_map": {"a": ""}}', '{"weight_map": {"a": "config.json"}}'],
)  # fmt: skip
def test_an_index_that_is_none_is_reported(tmp_path: Path, content: str) -> None:
    write_weights(tmp_path, tensors())
    (tmp_path / "model.safetensors.index.json").write_text(content)
    (problem,) = problems_of(tmp_path)
    assert "is not a valid index" in problem


def test_a_folder_in_place_of_an_index_is_reported(tmp_path: Path) -> None:
    write_weights(tmp_path, tensors())
    (tmp_path / "model.safetensors.index.json").mkdir()
    (problem,) = problems_of(tmp_path)
    assert "is not a valid index (IsADirectoryError" in problem


def test_a_message_shows_a_few_of_many_faults_that_differ_in_numbers_only(tmp_path: Path) -> None:
    """One missing tensor more than are shown in full, and a fault of another kind."""
    strays = {f"ck.layer.{number}.stray": torch.zeros(1) for number in range(ALIKE + 1)}
    write_weights(tmp_path, {**tensors(), **strays, "ck.surprise": torch.zeros(1)})
    with pytest.raises(CheckpointError) as raised:
        load(Net(), tmp_path)
    assert len(raised.value.problems) == ALIKE + 2
    shown = str(raised.value).splitlines()
    assert sum(".stray'" in line for line in shown) == EXAMPLES
    assert f"  - ... and {ALIKE + 1 - EXAMPLES} more like that; this error's `problems` lists them." in shown
    assert sum("'ck.surprise'" in line for line in shown) == 1


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (problem,) = problems_of(tmp_path)
    assert "looked for model.safetensors.index.json, model.safetensors and *.safetensors" in problem
    assert "pytorch_model.bin cannot be read; convert" in problem


def test_tied_parameters_stay_one_parameter_and_one_tensor_is_enough(tmp_path: Path) -> None:
    write_weights(tmp_path, tensors())
    model = Net(tied=True)
    load(model, tmp_path)
    check_contents(model)
    assert model.again.weight is model.out.weight


@pytest.mark.parametrize("only", ["ck.out.weight", "ck.tied.weight", None])
def test_a_tied_tensor_may_be_stored_under_either_name_or_twice_when_equal(tmp_path: Path, only: str | None) -> None:
    stored = tensors()
    stored["ck.tied.weight"] = stored["ck.out.weight"].clone()
    if only:
        stored = {name: tensor for name, tensor in stored.items() if name == only or tensor.shape != (3, 6)}
    write_weights(tmp_path, stored)
    model = Net(tied=True)
    load(model, tmp_path)
    check_contents(model)


def test_a_tied_tensor_that_differs_is_a_problem_beside_the_others(tmp_path: Path) -> None:
    stored = tensors()
    stored["ck.tied.weight"] = stored["ck.out.weight"] + torch.eye(3, 6)
    del stored["ck.scale"]
    write_weights(tmp_path, stored, 2)
    problems = problems_of(tmp_path, Net(tied=True))
    assert len(problems) == 2
    assert problems[1] == (
        "'ck.out.weight' in model-00001-of-00002.safetensors and 'ck.tied.weight' in model-00002-of-00002.safetensors"
        " differ, but the model ties them ('out.weight' = 'again.weight')."
    )


def test_a_missing_tied_tensor_is_reported_once_with_both_names(tmp_path: Path) -> None:
    stored = tensors()
    del stored["ck.out.weight"]
    write_weights(tmp_path, stored)
    (problem,) = problems_of(tmp_path, Net(tied=True))
    assert "no 'ck.out.weight' or 'ck.tied.weight'" in problem


class NetWithHook(Net):
    """Owns an unusual name: one transposed tensor, and one that holds two parts."""

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        assert ctx.full_name == name
        assert ctx.config == {}
        if name == "odd.out":
            return ResolvedWeight(param=self.out.weight, transform=lambda tensor: tensor.T)
        if name == "odd.bias":
            return ResolvedWeight(param=self.qk.get_parameter("bias"), loader=self._load_bias)
        return None

    def _load_bias(self, tensor: Tensor) -> None:
        with torch.no_grad():
            self.qk.get_parameter("bias").copy_(tensor.flip(0))


def unusual() -> dict[str, Tensor]:
    stored = tensors()
    stored["odd.out"] = stored.pop("ck.out.weight").T.contiguous()
    stored["odd.bias"] = torch.cat((stored.pop("ck.q.bias"), stored.pop("ck.k.bias"))).flip(0)
    return stored


def test_the_models_own_hook_is_asked_first_and_may_transform_or_load_itself(tmp_path: Path) -> None:
    write_weights(tmp_path, unusual())
    model = NetWithHook()
    load(model, tmp_path)
    check_contents(model)


def test_the_shape_after_a_transform_is_checked(tmp_path: Path) -> None:
    write_weights(tmp_path, {**unusual(), "odd.out": torch.zeros(3, 6)})
    assert problems_of(tmp_path, NetWithHook()) == (
        "'odd.out' in model.safetensors has shape [6, 3] (stored as [3, 6]), but 'out.weight' has [3, 6].",
    )


def test_what_a_hook_fills_counts_so_that_a_second_tensor_for_it_is_a_double(tmp_path: Path) -> None:
    write_weights(tmp_path, {**unusual(), "ck.k.bias": torch.zeros(2)})
    assert problems_of(tmp_path, NetWithHook()) == (
        "'ck.k.bias' in model.safetensors and 'odd.bias' in model.safetensors both fill 'qk.bias'.",
    )


def test_a_resolver_that_names_a_part_or_tensor_of_another_model_is_at_fault(tmp_path: Path) -> None:
    class Wrong(Net):
        def __init__(self, wrong: ResolvedWeight) -> None:
            super().__init__(device="cpu")
            self.wrong = wrong

        def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
            return self.wrong

    write_weights(tmp_path, tensors())
    with pytest.raises(PluginError, match="not part of the model"):
        load(Wrong(ResolvedWeight(buffer=torch.zeros(2))), tmp_path)
    strange = Wrong(ResolvedWeight(skip="later"))
    strange.wrong = ResolvedWeight(param=strange.qk.weight, shard_id="v")
    with pytest.raises(PluginError, match=r"part 'v' of 'qk\.weight', which has: 'q', 'k'"):
        load(strange, tmp_path)


def test_a_lost_buffer_that_no_checkpoint_holds_is_the_plugins_fault(tmp_path: Path) -> None:
    write_weights(tmp_path, tensors())
    model = Net()
    model.register_buffer("table", torch.empty(3, device="meta"), persistent=False)
    with pytest.raises(PluginError, match="'table' is not saved in checkpoints"):
        load(model, tmp_path)


def test_a_computed_buffer_keeps_its_values_and_is_not_asked_for(tmp_path: Path) -> None:
    write_weights(tmp_path, tensors())
    model: Any = Net()
    model.register_buffer("table", torch.tensor([1.0, 2.0]), persistent=False)
    load(model, tmp_path)
    assert model.table.tolist() == [1.0, 2.0]


def test_progress_is_shown_only_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_weights(tmp_path, tensors())
    load(Net(), tmp_path)
    assert capsys.readouterr().err == ""
    load_weights(Net(), RULES, tmp_path, {}, dtype=torch.float32, device=CPU)
    assert "6/6" in capsys.readouterr().err
