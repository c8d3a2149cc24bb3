"""Routing: which experts a token visits, with what weights, against transformers' gates and against plain Python."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor
from transformers import DeepseekV3Config, Glm4MoeConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from diffulex_core.context import BuildContext
from diffulex_core.errors import ConfigError
from diffulex_core.layers import DecoderSpec
from diffulex_core.layers.moe import MoESpec
from diffulex_core.layers.moe.routing import Router, choose

CPU = torch.device("cpu")
HIDDEN = 12
SIGMOID = MoESpec(
    num_experts=8, experts_per_token=3, expert_size=4, router="sigmoid", num_groups=4, groups_kept=2, renormalize=True,
    scale=2.5, correction_bias=True,
)  # fmt: skip
SOFTMAX = MoESpec(num_experts=8, experts_per_token=3, expert_size=4, router="softmax", renormalize=True)


def router(spec: MoESpec, seed: int = 0, dtype: torch.dtype = torch.float32) -> Router:
    made = Router(BuildContext(dtype=dtype, device=CPU), HIDDEN, spec)
    generator = torch.Generator().manual_seed(seed)
    made.weight.copy_(torch.randn(made.weight.shape, generator=generator))
    if made.bias is not None:
        made.bias.copy_(torch.randn(made.bias.shape, generator=generator) * 0.3)
    return made


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(100 + seed))


def as_maps(ids: Tensor, weights: Tensor) -> list[dict[int, float]]:
    """Expert to weight for each token: gates leave the order of the experts open."""
    return [dict(zip(i, w, strict=True)) for i, w in zip(ids.tolist(), weights.tolist(), strict=True)]


def check_same(ours: tuple[Tensor, Tensor], ids: Tensor, weights: Tensor) -> None:
    for mine, theirs in zip(as_maps(*ours), as_maps(ids, weights), strict=True):
        assert mine.keys() == theirs.keys()
        assert mine == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(
    ("config_cls", "gate_cls"),
    [(Glm4MoeConfig, Glm4MoeTopkRouter), (DeepseekV3Config, DeepseekV3TopkRouter)],
    ids=["glm4", "deepseek_v3"],
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"renormalize": False},
        {"num_groups": 1, "groups_kept": 1},
        {"num_groups": 2, "groups_kept": 1},
        {"groups_kept": 4},
        {"experts_per_token": 8, "groups_kept": 4},
        {"experts_per_token": 4, "num_experts": 24, "num_groups": 3},
        {"correction_bias": False},
    ],
    ids=str,
)
def test_sigmoid_routing_is_that_of_both_gates(changes: dict[str, Any], config_cls: Any, gate_cls: Any) -> None:
    spec = attrs.evolve(SIGMOID, **changes)
    ours = router(spec)
    gate = gate_cls(
        config_cls(
            hidden_size=HIDDEN, n_routed_experts=spec.num_experts, num_experts_per_tok=spec.experts_per_token,
            n_group=spec.num_groups, topk_group=spec.groups_kept, norm_topk_prob=spec.renormalize,
            routed_scaling_factor=spec.scale,
        )
    )  # fmt: skip
    with torch.no_grad():
        gate.weight.copy_(ours.weight)
        gate.e_score_correction_bias.copy_(torch.zeros(spec.num_experts) if ours.bias is None else ours.bias)
        x = rows(200)
        _, weights, ids = gate(x)
    check_same(ours(x), ids, weights)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_softmax_routing_is_that_of_qwen3_moe(renormalize: bool, k: int) -> None:
    spec = attrs.evolve(SOFTMAX, renormalize=renormalize, experts_per_token=k)
    ours = router(spec)
    config = Qwen3MoeConfig(
        hidden_size=HIDDEN, num_experts=spec.num_experts, num_experts_per_tok=k, norm_topk_prob=renormalize
    )
    gate = Qwen3MoeTopKRouter(config)
    with torch.no_grad():
        gate.weight.copy_(ours.weight)
        _, weights, ids = gate(rows(200))
    check_same(ours(rows(200)), ids, weights)


def sigmoid_by_hand(logits: list[float], bias: list[float], spec: MoESpec) -> dict[int, float]:
    """Group-limited sigmoid routing of one token, in double precision."""
    score = [1 / (1 + math.exp(-value)) for value in logits]
    merit = [s + b for s, b in zip(score, bias, strict=True)]
    experts = list(range(spec.num_experts))
    if spec.num_groups > 0 and spec.num_experts % spec.num_groups == 0:
        size = spec.num_experts // spec.num_groups
        groups = [experts[start : start + size] for start in range(0, spec.num_experts, size)]
        groups.sort(key=lambda group: -sum(sorted((merit[e] for e in group), reverse=True)[:2]))
        experts = sorted(e for group in groups[: spec.groups_kept] for e in group)
    chosen = sorted(experts, key=lambda e: -merit[e])[: spec.experts_per_token]
    total = sum(score[e] for e in chosen) + 1e-20 if spec.renormalize and spec.experts_per_token > 1 else 1.0
    return {e: score[e] / total * spec.scale for e in chosen}


@given(
    groups=st.sampled_from([0, 1, 2, 3, 4, 5, 6]),
    kept=st.integers(1, 6),
    k=st.integers(1, 12),
    renormalize=st.booleans(),
    seed=st.integers(0, 999),
)
def test_sigmoid_routing_is_the_formula_for_every_shape(
    groups: int, kept: int, k: int, renormalize: bool, seed: int
) -> None:
    values = {"num_groups": groups, "groups_kept": kept, "experts_per_token": k, "renormalize": renormalize}
    try:
        spec = attrs.evolve(SIGMOID, num_experts=12, **values)
    except ConfigError:
        assert groups > 1
        assert 12 % groups == 0
        assert kept * (12 // groups) < k
        return
    generator = torch.Generator().manual_seed(seed)
    logits, bias = torch.randn(5, 12, generator=generator), torch.randn(12, generator=generator)
    found = as_maps(*choose(logits, bias, spec))
    for mine, row in zip(found, logits.tolist(), strict=True):
        assert mine == pytest.approx(sigmoid_by_hand(row, bias.tolist(), spec), abs=1e-5)


def test_the_bias_chooses_and_does_not_weigh() -> None:
    spec = attrs.evolve(SIGMOID, num_groups=1, experts_per_token=2, renormalize=False, scale=1.0)
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0]])
    bias = torch.zeros(8)
    bias[7] = 9.0
    ids, weights = choose(logits, bias, spec)
    assert ids.tolist() == [[7, 0]]
    torch.testing.assert_close(weights, torch.sigmoid(torch.tensor([[-5.0, 2.0]])))


def test_equal_scores_go_to_the_lowest_expert() -> None:
    for spec in (SIGMOID, SOFTMAX, attrs.evolve(SIGMOID, num_groups=3)):
        ids, weights = choose(torch.zeros(4, 8), None, attrs.evolve(spec, correction_bias=False))
        assert ids.tolist() == [[0, 1, 2]] * 4
        assert torch.all(weights == weights[0, 0])


def test_many_experts_with_few_different_scores_are_taken_in_their_order() -> None:
    spec = attrs.evolve(SOFTMAX, num_experts=256, experts_per_token=8)
    ids, _ = choose((torch.arange(256) % 3).float()[None], None, spec)
    assert ids.tolist() == [[2, 5, 8, 11, 14, 17, 20, 23]]


def test_scores_that_vanish_give_weights_that_vanish_and_no_nan() -> None:
    for logit in (-80.0, -200.0):
        _, weights = choose(torch.full((2, 8), logit), None, attrs.evolve(SIGMOID, correction_bias=False))
        assert weights.isfinite().all()
        assert weights.sum(-1).max() <= 2.5 * (1 + 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", [SIGMOID, SOFTMAX], ids=["sigmoid", "softmax"])
def test_ids_are_int32_and_weights_fp32_whatever_the_engines_dtype(spec: MoESpec, dtype: torch.dtype) -> None:
    made = router(spec, dtype=dtype)
    ids, weights = made(rows(5).to(dtype))
    assert (ids.dtype, weights.dtype) == (torch.int32, torch.float32)
    assert ids.shape == weights.shape == (5, 3)
    assert made.weight.dtype == torch.float32


def test_scores_are_computed_in_fp32_from_activations_of_a_narrower_dtype() -> None:
    made = router(SIGMOID, dtype=torch.bfloat16)
    narrow = rows(50).bfloat16()
    check_same(made(narrow), *made(narrow.float()))


def test_weight_and_bias_keep_their_digits_when_the_module_is_cast_and_moved() -> None:
    made = router(SIGMOID)
    assert made.bias is not None
    weight, bias = made.weight.clone(), made.bias.clone()
    cast = made.to(torch.bfloat16).half().to("cpu")
    assert cast.bias is not None
    assert torch.equal(cast.weight, weight)
    assert torch.equal(cast.bias, bias)
    assert (
        Router(BuildContext(dtype=torch.bfloat16, device=torch.device("meta")), HIDDEN, SIGMOID).half().bias is not None
    )


@pytest.mark.parametrize("spec", [SIGMOID, SOFTMAX], ids=["sigmoid", "softmax"])
@given(count=st.integers(1, 12), place=st.integers(0, 95), seed=st.integers(0, 99))
def test_a_tokens_bits_do_not_depend_on_its_batch_mates(spec: MoESpec, count: int, place: int, seed: int) -> None:
    made, place = router(spec), place % (8 * count)
    alone, together = torch.zeros(8, HIDDEN), rows(8 * count, seed)
    alone[0] = together[place]
    for one, many in zip(made(alone), made(together), strict=True):
        assert torch.equal(one[0], many[place])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts": 0}, "num_experts is 0"),
        ({"expert_size": 0}, "expert_size is 0"),
        ({"experts_per_token": 0}, "cannot visit 0 of 8"),
        ({"experts_per_token": 9}, "cannot visit 9 of 8"),
        ({"shared_size": -1}, "shared_size is -1"),
        ({"scale": 0.0}, "scale of the experts' weights is 0.0"),
        ({"scale": float("nan")}, "must be positive"),
        ({"groups_kept": 0}, "groups_kept is 0"),
        ({"groups_kept": 1}, "1 groups of 2 experts are too few for 3"),
        ({"router": "softmax"}, "sigmoid router only"),
        ({"router": "softmax", "num_groups": 1}, "sigmoid router only"),
    ],
)
def test_numbers_that_make_no_mixture_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        attrs.evolve(SIGMOID, **changes)


def test_all_problems_of_a_mixture_are_in_one_error() -> None:
    with pytest.raises(ConfigError) as raised:
        MoESpec(num_experts=0, experts_per_token=2, expert_size=0, router="sigmoid", renormalize=True, shared_size=-1)
    assert len(raised.value.problems) == 4


@pytest.mark.parametrize(
    ("moe", "sparse", "words"),
    [(SOFTMAX, (), "the other way round"), (None, (1,), "the other way round"), (SOFTMAX, (0, 2, -1), r"\[-1, 2\]")],
)
def test_a_decoder_names_the_layers_that_have_experts(moe: MoESpec | None, sparse: tuple[int, ...], words: str) -> None:
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_size": 8}
    with pytest.raises(ConfigError, match=words):
        DecoderSpec(**sizes, rope_theta=1e4, moe=moe, sparse_layers=sparse)
    assert DecoderSpec(**sizes, rope_theta=1e4, moe=SOFTMAX, sparse_layers=[1]).sparse_layers == {1}


def test_a_mixture_can_be_described_without_importing_torch() -> None:
    code = "import sys; from diffulex_core.layers.moe import MoESpec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
