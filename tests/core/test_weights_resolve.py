"""Who is asked for a tensor's place: modules by longest prefix, then the network, then the family, then the name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.errors import CheckpointError
from diffulex_core.layers.linear import Linear
from diffulex_core.weights import LoadContext, Rename, ResolvedWeight, WeightRules, load_weights
from diffulex_core.weights.resolve import Resolution

CPU = torch.device("cpu")
CTX = BuildContext(dtype=torch.float32, device=torch.device("meta"))


class Asked(nn.Module):
    """A module that writes down what it is asked, and answers what it was told to."""

    def __init__(self, log: list[tuple[str, str]], path: str, answers: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.log, self.path, self.answers = log, path, dict(answers or {})

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        self.log.append((self.path, name))
        assert ctx.full_name.endswith(name)
        return ResolvedWeight(param=ctx.parameters[self.answers[name]]) if name in self.answers else None


def network(log: list[tuple[str, str]], **answers: Mapping[str, str]) -> Asked:
    """blocks.0 (asked) holds inner (asked) holds a linear layer; blocks.1 is a plain linear layer."""
    net = Asked(log, "", answers.get("root"))
    inner = Asked(log, "blocks.0.inner", answers.get("inner"))
    inner.linear = Linear(CTX, 2, 2)
    block = Asked(log, "blocks.0", answers.get("block"))
    block.inner = inner
    net.blocks = nn.ModuleList([block, Linear(CTX, 2, 2)])
    return net


class Family:
    """A family's resolver that writes down what it is asked."""

    def __init__(self, log: list[tuple[str, str]], rules: WeightRules) -> None:
        self.log, self.rules = log, rules

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        self.log.append(("family", name))
        return self.rules.resolve_checkpoint_weight(name, ctx)


def test_all_are_asked_from_the_longest_prefix_on_each_with_the_rest_of_the_name() -> None:
    log: list[tuple[str, str]] = []
    resolve = Resolution.of(network(log), Family(log, WeightRules()), {}, torch.float32)
    assert resolve("blocks.0.inner.experts.3.up") is None
    assert log == [
        ("blocks.0.inner", "experts.3.up"), ("blocks.0", "inner.experts.3.up"),
        ("", "blocks.0.inner.experts.3.up"), ("family", "blocks.0.inner.experts.3.up"),
    ]  # fmt: skip
    log.clear()
    assert resolve("blocks.01.x") is None
    assert resolve("lonely") is None
    assert log == [("", "blocks.01.x"), ("family", "blocks.01.x"), ("", "lonely"), ("family", "lonely")]


@pytest.mark.parametrize("who", ["inner", "block", "root"])
def test_the_first_answer_holds_and_nobody_else_is_asked(who: str) -> None:
    asked = {"inner": "odd", "block": "inner.odd", "root": "blocks.0.inner.odd"}[who]
    log: list[tuple[str, str]] = []
    net = network(log, **{who: {asked: "blocks.1.weight"}})
    rules = WeightRules(Rename("blocks.0.inner.odd", "blocks.0.inner.linear.weight"))
    found = Resolution.of(net, Family(log, rules), {}, torch.float32)("blocks.0.inner.odd")
    assert found is not None
    assert found.param is net.get_parameter("blocks.1.weight")
    assert log[-1][1] == asked


def test_the_family_comes_before_the_name_itself() -> None:
    log: list[tuple[str, str]] = []
    net = network(log)
    swapped = WeightRules(Rename("blocks.1.weight", "blocks.0.inner.linear.weight"))
    found = Resolution.of(net, Family(log, swapped), {}, torch.float32)("blocks.1.weight")
    assert found is not None
    assert found.param is net.get_parameter("blocks.0.inner.linear.weight")
    plain = Resolution.of(net, Family(log, WeightRules()), {}, torch.float32)("blocks.1.weight")
    assert plain is not None
    assert plain.param is net.get_parameter("blocks.1.weight")


class Merged(nn.Module):
    """Owns the names below its path: each half of its weight has one, and one name is of no use to it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Linear(CTX, 3, 4).weight

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        if name == "halves":
            return ResolvedWeight(param=self.weight, transform=lambda halves: halves.flatten(0, 1))
        return ResolvedWeight(skip="a counter of the training") if name == "step" else None


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.merged = Merged()
        self.out = Linear(CTX, 3, 3)


def load(folder: Path, stored: Mapping[str, Tensor]) -> tuple[Net, Mapping[str, str]]:
    save_file(dict(stored), folder / "model.safetensors")
    net = Net()
    report = load_weights(net, WeightRules(), folder, {}, dtype=torch.float32, device=CPU, progress=False)
    return net, report.skipped


STORED = {
    "merged.halves": torch.arange(12.0).view(2, 2, 3), "merged.step": torch.ones(1), "out.weight": torch.eye(3),
}  # fmt: skip


def test_a_module_may_transform_and_skip_what_lies_below_its_path(tmp_path: Path) -> None:
    net, skipped = load(tmp_path, STORED)
    assert torch.equal(net.merged.weight, torch.arange(12.0).view(4, 3))
    assert skipped == {"merged.step": "a counter of the training"}


@pytest.mark.parametrize("shape", [(12,), (2, 6), (2, 3, 2), ()])
def test_a_tensor_that_a_transform_cannot_take_is_a_problem_of_the_checkpoint(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    with pytest.raises(CheckpointError) as raised:
        load(tmp_path, {**STORED, "merged.halves": torch.zeros(shape)})
    (problem,) = raised.value.problems
    assert problem.startswith("'merged.halves' in model.safetensors has shape [")
    assert "'merged.weight'" in problem
