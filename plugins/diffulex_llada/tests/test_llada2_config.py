"""Reading LLaDA2's config.json, and choosing the family: what the network cannot do is refused, all at once."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import attrs
import pytest

from diffulex_core.config import EngineConfig, resolve
from diffulex_core.errors import ConfigError, IncompatibleError
from diffulex_core.host import Host
from diffulex_core.layers import DecoderSpec
from diffulex_core.layers.moe import MoESpec
from diffulex_core.plugin import Capability
from diffulex_llada.llada2.config import TINY, check_config, decoder_spec

NAMES = ("llada2", "llada2_moe", "llada2_mini", "llada2dot1_mini", "llada2_mini_dmax")
MINI: dict[str, Any] = {
    "architectures": ["LLaDA2MoeModelLM"], "model_type": "llada2_moe", "hidden_size": 2048, "num_hidden_layers": 20,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 5120,
    "moe_intermediate_size": 512, "num_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
    "num_shared_experts": 1, "first_k_dense_replace": 1, "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "router_dtype": "fp32",
    "partial_rotary_factor": 0.5, "rotary_dim": 64, "rope_theta": 600000, "rope_scaling": None, "rms_norm_eps": 1e-6,
    "use_qkv_bias": False, "use_bias": False, "norm_head": False, "norm_softmax": False,
    "using_split_qkv_in_self_attention": False, "use_sliding_window": False, "tie_word_embeddings": False,
    "vocab_size": 157184, "pad_token_id": 156892, "eos_token_id": 156892, "max_position_embeddings": 32768,
    "hidden_act": "silu",
}  # fmt: skip
FLASH = {
    **MINI, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
}  # fmt: skip


def tiny(**changes: Any) -> dict[str, Any]:
    """A small config.json; a key that is set to `...` is left out."""
    return {key: value for key, value in {**TINY, **changes}.items() if value is not ...}


def test_mini_and_flash_have_their_published_shapes() -> None:
    experts = MoESpec(
        num_experts=256, experts_per_token=8, expert_size=512, router="sigmoid", num_groups=8, groups_kept=4,
        renormalize=True, scale=2.5, correction_bias=True, shared_size=512,
    )  # fmt: skip
    mini = DecoderSpec(
        vocab_size=157184, hidden_size=2048, num_layers=20, num_heads=16, num_kv_heads=4, head_dim=128, ffn_size=5120,
        rope_theta=600000, rope_fraction=0.5, norm_eps=1e-6, qk_norm=True, moe=experts, sparse_layers=range(1, 20),
    )  # fmt: skip
    assert decoder_spec(MINI) == mini
    assert mini.rotary_dim == 64
    assert decoder_spec(FLASH) == attrs.evolve(
        mini, hidden_size=4096, num_layers=32, num_heads=32, ffn_size=9216, sparse_layers=range(1, 32),
        moe=attrs.evolve(experts, expert_size=1024, shared_size=1024),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"use_qk_norm": ...}, {"qk_norm": True}),
        ({"use_qk_norm": False}, {"qk_norm": False}),
        ({"use_qkv_bias": True}, {"qkv_bias": True, "out_bias": False}),
        ({"use_qkv_bias": ...}, {"qkv_bias": False}),
        ({"use_bias": True}, {"qkv_bias": False, "out_bias": True}),
        ({"tie_word_embeddings": True}, {"tie_embeddings": True}),
        ({"partial_rotary_factor": ..., "rotary_dim": 6}, {"rope_fraction": 0.5}),
        ({"rotary_dim": 6}, {"rope_fraction": 0.5}),
        ({"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, {"rope_theta": 1e4}),
        ({"partial_rotary_factor": ..., "rope_parameters": {"partial_rotary_factor": 1.0}}, {"rope_fraction": 1.0}),
        ({"first_k_dense_replace": 0}, {"sparse_layers": {0, 1, 2}}),
        ({"first_k_dense_replace": 3}, {"sparse_layers": frozenset(), "moe": None}),
        ({"score_function": ..., "router_dtype": ..., "norm_head": None}, {}),
    ],
    ids=str,
)
def test_keys_mean_what_the_published_checkpoints_make_of_them(
    changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    spec = attrs.asdict(decoder_spec(tiny(**changes)), recurse=False)
    assert {key: spec[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_shared_experts": 0}, {"shared_size": 0}),
        ({"num_shared_experts": 2}, {"shared_size": 40}),
        ({"moe_shared_expert_intermediate_size": 20}, {"shared_size": 20}),
        ({"moe_router_enable_expert_bias": False}, {"correction_bias": False}),
        ({"n_group": 0, "topk_group": 0}, {"limited": False}),
        ({"n_group": 3}, {"limited": False}),
        ({}, {"limited": True, "group_size": 2}),
    ],
    ids=str,
)
def test_the_experts_are_read(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    moe = decoder_spec(tiny(**changes)).moe
    assert moe is not None
    assert {name: getattr(moe, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm_head": True}, "norm_head is True"),
        ({"norm_softmax": True}, "norm_softmax is True"),
        ({"using_split_qkv_in_self_attention": True}, "using_split_qkv_in_self_attention is True"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"use_rmsnorm": False}, "use_rmsnorm is False"),
        ({"score_function": "softmax"}, "score_function is 'softmax'"),
        ({"router_dtype": "bf16"}, "router_dtype is 'bf16'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling asks for 'yarn'"),
        ({"rotary_dim": 8}, "rotary_dim is 8, but partial_rotary_factor gives 6"),
        ({"partial_rotary_factor": ...}, "partial_rotary_factor is missing"),
        ({"moe_shared_expert_intermediate_size": 24}, "moe_shared_expert_intermediate_size is 24"),
        ({"topk_group": 1}, "1 groups of 2 experts are too few for 3"),
        ({"num_experts_per_tok": 9, "n_group": 1}, "cannot visit 9 of 8"),
        ({"num_experts": 0}, "num_experts is 0"),
        ({"use_bias": ...}, "use_bias is missing"),
        ({"vocab_size": ...}, "vocab_size is missing"),
        ({"rms_norm_eps": ...}, "rms_norm_eps is missing"),
        ({"rope_theta": ...}, "rope_theta is missing"),
        ({"head_dim": ...}, "head_dim is missing"),
        ({"n_group": ...}, "n_group is missing"),
        ({"topk_group": ...}, "topk_group is missing"),
        ({"num_experts_per_tok": ...}, "num_experts_per_tok is missing"),
        ({"moe_intermediate_size": ...}, "moe_intermediate_size is missing"),
        ({"num_shared_experts": ...}, "num_shared_experts is missing"),
        ({"first_k_dense_replace": ...}, "first_k_dense_replace is missing"),
        ({"norm_topk_prob": ...}, "norm_topk_prob is missing"),
        ({"routed_scaling_factor": ...}, "routed_scaling_factor is missing"),
        ({"moe_router_enable_expert_bias": ...}, "moe_router_enable_expert_bias is missing"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused_with_the_keys_name(changes: dict[str, Any], words: str) -> None:
    [problem] = check_config(tiny(**changes))
    assert words in problem
    with pytest.raises(ConfigError, match=r"."):
        decoder_spec(tiny(**changes))


def test_all_problems_of_a_config_are_reported_together() -> None:
    problems = check_config(tiny(norm_head=True, num_experts=..., hidden_size=0, norm_topk_prob="yes"))
    assert len(problems) == 4


def configured(checkpoint: dict[str, Any] | None = None, **given: Any) -> EngineConfig:
    facts = {name: given.pop(name) for name in ("tokenizer_mask_id",) if name in given}
    return resolve("ckpt", given, host=Host.discover(environ={}), checkpoint=checkpoint or MINI, **facts)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_leads_to_the_family_that_the_checkpoint_names_too(name: str) -> None:
    named, inferred = configured(model_name=name), configured()
    assert named.family == inferred.family
    assert inferred.family.name == "llada2"
    assert configured(tiny(model_type="llada2_moe_veomni", architectures=...)).family.name == "llada2"


@pytest.mark.parametrize("name", NAMES)
def test_only_the_checkpoint_that_is_called_2_1_edits_unasked(name: str) -> None:
    editing = name == "llada2dot1_mini"
    config = configured(model_name=name)
    assert config.decoding.sampling_mode == ("edit" if editing else "naive")
    assert config.strategy.req == ("diffulex_multibd.edit:edit_request" if editing else None)
    assert configured(model_name=name, sampling_mode="edit").decoding.sampling_mode == "edit"


def test_the_checkpoint_called_2_1_is_not_decoded_without_edits() -> None:
    with pytest.raises(
        ConfigError,
        match=r"sampling_mode is 'naive' .*'llada2dot1_mini' works with 'edit' only; leave sampling_mode out, or call "
        r"the model 'llada2'",
    ):
        configured(model_name="llada2dot1_mini", sampling_mode="naive")
    config = configured(model_name="llada2dot1_mini", decoding_strategy="dmax")
    assert (config.strategy.name, config.decoding.sampling_mode, config.warnings) == ("dmax", "edit", ())


def test_the_strategy_the_block_size_and_the_mask_token_need_not_be_given() -> None:
    config = configured()
    assert config.strategy.name == "multi_bd"
    assert (config.decoding.block_size, config.model.mask_token_id) == (32, 156895)
    assert config.model.eos_token_ids == (156892,)


def test_the_published_mask_token_stands_in_only_where_nothing_else_names_one() -> None:
    assert configured(tokenizer_mask_id=156000).model.mask_token_id == 156000
    assert configured({**MINI, "mask_token_id": 7}, tokenizer_mask_id=156000).model.mask_token_id == 7
    assert configured({**MINI, "mask_token_id": 7}, mask_token_id=9).model.mask_token_id == 9


def test_a_vocabulary_without_the_published_mask_token_needs_one_to_be_given() -> None:
    with pytest.raises(ConfigError, match="mask_token_id is 156895"):
        configured(tiny(mask_token_id=...))


def test_the_network_may_revise_tokens_and_read_blended_embeddings_but_not_see_the_future() -> None:
    provides = configured().family.provides
    assert provides == {
        Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL, Capability.EDIT, Capability.SOFT_INPUTS,
    }  # fmt: skip
    with pytest.raises(IncompatibleError, match="requires full_prefix"):
        configured(decoding_strategy="d2f")


def test_a_dense_llada_checkpoint_is_not_this_family() -> None:
    dense = {"architectures": ["LLaDAModelLM"], "model_type": "llada"}
    with pytest.raises(ConfigError, match=r"model_name is 'llada2_mini' .* but config\.json belongs to 'llada'"):
        configured(dense, model_name="llada2_mini")


def test_a_config_can_be_checked_without_importing_torch() -> None:
    code = "import sys; from diffulex_llada.llada2.config import *; print(check_config(TINY), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"
