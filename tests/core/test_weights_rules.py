"""Rules that name where checkpoint tensors go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diffulex_core.errors import PluginError
from diffulex_core.weights import LoadContext, Rename, ResolvedWeight, Skip, Stray, WeightRules

RULES = WeightRules(
    Rename("net.{i}.{q,k}_proj.{weight,bias}", "layers.{i}.qk.{weight,bias}", shard="{q,k}"),
    Rename("net.{i}.out.weight", "layers.{i}.out.weight"),
    Rename("out.weight", "head.weight"),
    Rename("scale", "scale"),
    Skip("vision.*", "text only"),
    Skip("net.{i}.rotary.inv_freq", "computed"),
)


def context(*parameters: str, buffers: tuple[str, ...] = ()) -> LoadContext:
    return LoadContext(
        config={},
        full_name="",
        dtype=torch.float32,
        parameters={name: nn.Parameter(torch.zeros(1)) for name in parameters},
        buffers={name: torch.zeros(1) for name in buffers},
    )


def resolve(name: str, ctx: LoadContext, rules: WeightRules = RULES) -> tuple[Tensor | None, object]:
    resolved = rules.resolve_checkpoint_weight(name, ctx)
    return (None, None) if resolved is None else (resolved.target, resolved.shard_id)


def test_numbers_and_words_are_carried_over_to_target_and_shard() -> None:
    ctx = context("layers.12.qk.weight", "layers.12.qk.bias")
    assert resolve("net.12.k_proj.weight", ctx) == (ctx.parameters["layers.12.qk.weight"], "k")
    assert resolve("net.12.q_proj.bias", ctx) == (ctx.parameters["layers.12.qk.bias"], "q")


def test_names_match_whole_so_that_a_leaf_is_not_taken_for_the_top_level_tensor() -> None:
    ctx = context("layers.0.out.weight", "head.weight")
    assert resolve("net.0.out.weight", ctx) == (ctx.parameters["layers.0.out.weight"], None)
    assert resolve("out.weight", ctx) == (ctx.parameters["head.weight"], None)
    assert resolve("net.0.out.weight.extra", ctx) == (None, None)
    assert resolve("xout.weight", ctx) == (None, None)
    assert resolve("outXweight", ctx) == (None, None)


@pytest.mark.parametrize("name", ["net.01.out.weight", "net.-1.out.weight", "net.x.out.weight", "net..out.weight"])
def test_a_number_is_written_without_sign_or_leading_zero(name: str) -> None:
    assert resolve(name, context("layers.1.out.weight", "layers.01.out.weight")) == (None, None)


def test_a_rule_whose_target_the_model_lacks_claims_nothing() -> None:
    assert resolve("net.7.out.weight", context("layers.0.out.weight")) == (None, None)


def test_buffers_are_targets_too() -> None:
    ctx = context(buffers=("scale",))
    assert resolve("scale", ctx) == (ctx.buffers["scale"], None)


def test_a_skip_gives_its_reason() -> None:
    for name, reason in (("vision.tower.3.weight", "text only"), ("net.4.rotary.inv_freq", "computed")):
        resolved = RULES.resolve_checkpoint_weight(name, context())
        assert resolved is not None
        assert resolved.skip == reason


def test_a_stray_tensor_has_no_place_but_a_meaning() -> None:
    rules = WeightRules(Rename("a.{x,y}.weight", "b.{x,y}.weight"), Stray("a.*", "it is another network's"))
    ctx = context("b.x.weight")
    assert resolve("a.x.weight", ctx, rules) == (ctx.parameters["b.x.weight"], None)
    assert rules.resolve_checkpoint_weight("a.y.weight", ctx) is None
    assert (rules.explain("a.y.weight"), rules.explain("c")) == ("it is another network's", "")


def test_two_rules_for_one_name_are_an_error_that_names_it() -> None:
    rules = WeightRules(Rename("a.{x,y}.weight", "b.{x,y}.weight"), Skip("a.y.*", "why not"))
    with pytest.raises(PluginError, match=r"'a\.y\.weight'"):
        rules.resolve_checkpoint_weight("a.y.weight", context("b.y.weight"))


def test_rules_tell_which_checkpoint_tensor_they_expect() -> None:
    assert RULES.sources("layers.3.qk.bias", "k") == ["net.3.k_proj.bias"]
    assert RULES.sources("layers.3.out.weight", None) == ["net.3.out.weight"]
    assert RULES.sources("layers.3.qk.bias", "v") == []
    assert RULES.sources("layers.3.qk.bias", None) == []


@pytest.mark.parametrize(
    ("source", "target", "shard"),
    [
        ("a.{i}.weight", "b.weight", None),
        ("a.weight", "b.{i}.weight", None),
        ("a.{q,k}.weight", "b.weight", "{k,q}"),
        ("a.*", "b.weight", None),
        ("a.{}.weight", "b.{}.weight", None),
        ("a.{q,}.weight", "b.{q,}.weight", None),
    ],
)
def test_a_rename_that_cannot_be_followed_is_refused_when_it_is_written(
    source: str, target: str, shard: str | None
) -> None:
    with pytest.raises(PluginError):
        Rename(source, target, shard=shard)


def test_a_variable_that_stands_twice_must_be_equal_in_both_places() -> None:
    rule = Rename("a.{i}.b.{i}", "c.{i}")
    assert rule.resolve("a.3.b.3") == ("c.3", None)
    assert rule.resolve("a.3.b.4") is None


def test_a_skip_without_a_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="reason"):
        Skip("a.*", "")


PARAM = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"param": PARAM, "buffer": torch.zeros(1)},
        {"param": PARAM, "skip": "reason"},
        {"skip": ""},
        {"skip": "reason", "shard_id": "q"},
        {"skip": "reason", "transform": torch.neg},
        {"loader": print},
    ],
)
def test_a_resolved_weight_that_contradicts_itself_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(PluginError, match="ResolvedWeight"):
        ResolvedWeight(**fields)  # type: ignore[arg-type]


def test_a_loader_alone_is_told_to_name_what_it_fills() -> None:
    with pytest.raises(PluginError, match="Name what the loader fills"):
        ResolvedWeight(loader=print)


def test_words_that_differ_between_the_sides_are_named() -> None:
    with pytest.raises(PluginError, match=r"It has \{1,2\} and \{i\}, they have \{attn,ff\} and \{i\}"):
        Rename("h.{i}.ln_{1,2}.weight", "layers.{i}.{attn,ff}_norm.weight")
