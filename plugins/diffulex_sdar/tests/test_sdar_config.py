"""SDAR's and Stable-DiffCoder's config.json: what is read, what is refused, and which family claims what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from diffulex_core.config import EngineConfig, resolve
from diffulex_core.config.load import load_config
from diffulex_core.errors import ConfigError
from diffulex_core.host import Host
from diffulex_core.layers import DecoderSpec
from diffulex_core.layers.moe import MoESpec
from diffulex_core.plugin import Capability
from diffulex_sdar.config import (
    TINY_SDAR,
    TINY_STABLE_DIFFCODER,
    check_sdar,
    check_sdar_moe,
    check_stable_diffcoder,
    sdar_moe_spec,
    sdar_spec,
    stable_diffcoder_spec,
)

HOST = Host.discover(["diffulex-sdar", "diffulex-multibd"], environ={})

SDAR_4B = {
    "architectures": ["SDARForCausalLM"], "model_type": "sdar", "vocab_size": 151936, "hidden_size": 2560,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 9728, "hidden_act": "silu", "rope_theta": 1000000.0, "rope_scaling": None,
    "rms_norm_eps": 1e-6, "attention_bias": False, "attention_dropout": 0.0, "sliding_window": None,
    "use_sliding_window": False, "max_window_layers": 36, "max_position_embeddings": 32768, "use_cache": True,
    "torch_dtype": "bfloat16", "tie_word_embeddings": False, "eos_token_id": 151643,
}  # fmt: skip
SDAR_30B = {
    **SDAR_4B, "architectures": ["SDARMoeForCausalLM"], "model_type": "sdar_moe", "hidden_size": 2048,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "router_aux_loss_coef": 0.001, "torch_dtype": "float16",
}  # fmt: skip
STABLE_DIFFCODER_8B = {
    "architectures": ["StableDiffcoderForCausalLM"], "model_type": "llama", "vocab_size": 155136, "hidden_size": 4096,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "hidden_act": "silu", "rope_theta": 500000.0, "rms_norm_eps": 1e-6, "attention_bias": False, "mlp_bias": False,
    "max_position_embeddings": 8192, "tie_word_embeddings": False, "bos_token_id": 0, "pad_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


def configure(checkpoint: Mapping[str, Any], **options: Any) -> EngineConfig:
    return resolve("somewhere", options, host=HOST, checkpoint=checkpoint)


def test_the_4b_configuration_gives_its_published_shape() -> None:
    assert check_sdar(SDAR_4B) == []
    assert sdar_spec(SDAR_4B) == DecoderSpec(
        vocab_size=151936, hidden_size=2560, num_layers=36, num_heads=32, num_kv_heads=8, head_dim=128, ffn_size=9728,
        rope_theta=1000000.0, norm_eps=1e-6, qk_norm=True,
    )  # fmt: skip


def test_the_30b_configuration_has_experts_in_every_layer() -> None:
    assert check_sdar_moe(SDAR_30B) == []
    spec = sdar_moe_spec(SDAR_30B)
    assert spec.moe == MoESpec(
        num_experts=128, experts_per_token=8, expert_size=768, router="softmax", renormalize=True
    )  # fmt: skip
    assert spec.sparse_layers == set(range(48))
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.qk_norm) == (32, 4, 128, True)


@pytest.mark.parametrize("key", ["num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"])
def test_what_describes_the_experts_is_never_guessed(key: str) -> None:
    (problem,) = check_sdar_moe({name: value for name, value in SDAR_30B.items() if name != key})
    assert problem.startswith(f"{key} is missing")


def test_stable_diffcoders_configuration_gives_a_llama() -> None:
    assert check_stable_diffcoder(STABLE_DIFFCODER_8B) == []
    spec = stable_diffcoder_spec(STABLE_DIFFCODER_8B)
    assert (spec.head_dim, spec.num_kv_heads, spec.qk_norm, spec.tie_embeddings) == (128, 8, False, False)
    assert (spec.rope_theta, spec.norm_eps, spec.vocab_size) == (500000.0, 1e-6, 155136)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_dim": None}, "head_dim is None"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is ['full_attention', 'sliding"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling asks for 'yarn'"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is 1000000.0, but 5.0 in rope_parameters"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ],
)
def test_what_sdars_network_cannot_do_is_refused_by_name_and_value(changes: dict[str, Any], words: str) -> None:
    (problem,) = check_sdar({**TINY_SDAR, **changes})
    assert words in problem
    with pytest.raises(ConfigError) as raised:
        sdar_spec({**TINY_SDAR, **changes})
    assert raised.value.problems == (problem,)


def test_the_width_of_sdars_heads_is_never_derived() -> None:
    config = {key: value for key, value in TINY_SDAR.items() if key != "head_dim"}
    assert check_sdar(config) == ["head_dim is missing; config.json must give a whole number of at least 1."]


@pytest.mark.parametrize("changes", [{"mlp_bias": True}, {"attention_bias": True}])
def test_stable_diffcoder_has_no_biases(changes: dict[str, Any]) -> None:
    (problem,) = check_stable_diffcoder({**TINY_STABLE_DIFFCODER, **changes})
    assert "is True; the one supported value is False" in problem


def test_the_head_is_tied_only_if_the_key_says_so() -> None:
    untied = {key: value for key, value in TINY_SDAR.items() if key != "tie_word_embeddings"}
    assert not sdar_spec(untied).tie_embeddings
    assert sdar_spec({**untied, "tie_word_embeddings": True}).tie_embeddings


@pytest.mark.parametrize(
    ("config", "family", "mask"),
    [(SDAR_4B, "sdar", 151669), (SDAR_30B, "sdar_moe", 151669), (STABLE_DIFFCODER_8B, "stable_diffcoder", 5)],
)
def test_a_published_config_names_its_family_and_everything_else_follows(
    config: dict[str, Any], family: str, mask: int
) -> None:
    resolved = configure(config)
    assert resolved.family.name == family
    assert resolved.strategy.name == "multi_bd"
    assert resolved.model.mask_token_id == mask
    assert resolved.decoding.block_size == 4
    assert resolved.origins["block_size"].source == "family"


def test_a_block_size_in_config_json_is_the_one_it_was_trained_with() -> None:
    assert configure({**SDAR_4B, "block_size": 16}).decoding.block_size == 16
    assert configure({**SDAR_4B, "block_size": 16}, block_size=8).decoding.block_size == 8


@pytest.mark.parametrize("config", [SDAR_4B, SDAR_30B])
def test_the_largest_blocks_of_its_checkpoints_bring_pages_that_hold_them(config: dict[str, Any]) -> None:
    resolved = configure({**config, "block_size": 64})
    assert (resolved.decoding.block_size, resolved.cache.page_size) == (64, 64)
    assert configure(config, block_size=64).cache.page_size == 64
    with pytest.raises(ConfigError, match="a page cannot be smaller than a block"):
        configure(config, block_size=64, page_size=32)


def test_an_autoregressive_llama_is_not_taken_for_stable_diffcoder() -> None:
    with pytest.raises(ConfigError, match=r"No model family claims this checkpoint \(architectures LlamaForCausalLM"):
        configure({**STABLE_DIFFCODER_8B, "architectures": ["LlamaForCausalLM"]})
    with pytest.raises(ConfigError, match="No model family claims this checkpoint"):
        configure({key: value for key, value in STABLE_DIFFCODER_8B.items() if key != "architectures"})


def test_the_wrong_family_for_a_checkpoint_is_named_beside_the_right_one() -> None:
    with pytest.raises(ConfigError, match=r"model_name is 'sdar'.*config\.json belongs to 'stable_diffcoder'"):
        configure(STABLE_DIFFCODER_8B, model_name="sdar")


def test_every_family_runs_block_causally_and_decides_by_its_own_rule() -> None:
    rules = {family.name: family.sampler.force_rule for family in HOST.models}
    assert rules["sdar"] == "after_semi_complete"
    assert rules["sdar_moe"] == "after_semi_complete"
    assert rules["stable_diffcoder"] == "always"
    for family in HOST.models:
        assert family.logits == "aligned"
        assert family.provides == {Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL}
        assert family.default_strategy == "multi_bd"


def test_a_strategy_with_another_visibility_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="full_prefix"):
        configure(SDAR_4B, decoding_strategy="d2f")


@pytest.mark.parametrize(
    ("config", "tokens", "mask", "ends"),
    [
        (SDAR_4B, {"<|MASK|>": 151700, "<|im_end|>": 151645}, 151700, (151643, 151645)),
        (STABLE_DIFFCODER_8B, {"<[MASK_TOKEN]>": 7}, 7, (2,)),
    ],
)
def test_the_tokenizer_tells_the_mask_token_and_what_else_ends_an_answer(
    config: dict[str, Any], tokens: dict[str, int], mask: int, ends: tuple[int, ...]
) -> None:
    resolved = resolve("somewhere", {}, host=HOST, checkpoint=config, tokenizer_tokens=tokens)
    assert resolved.model.mask_token_id == mask
    assert resolved.model.eos_token_ids == ends


def test_an_id_that_means_another_token_is_no_mask() -> None:
    checkpoint = {**SDAR_4B, "mask_token_id": 7}
    with pytest.raises(ConfigError, match=r"<\|MASK\|>"):
        resolve("somewhere", {}, host=HOST, checkpoint=checkpoint, tokenizer_tokens={"<|MASK|>": 151669, "<|pad|>": 7})


def test_vocabulary_and_merges_are_read_without_a_warning_about_the_models_type(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alphabet = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    (tmp_path / "vocab.json").write_text(json.dumps({**alphabet, "he": 256}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\n")
    added = {"257": {"content": "<|MASK|>", "special": True}, "258": {"content": "<|im_end|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "eos_token": "<|im_end|>",
        "auto_map": {"AutoTokenizer": ["tokenization_qwen2.Qwen2Tokenizer", None]},
    }))  # fmt: skip
    config = {**TINY_SDAR, "vocab_size": 270, "eos_token_id": 258, "pad_token_id": 258, "mask_token_id": 257}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_config(str(tmp_path), {}, host=HOST)
    assert loaded.tokenizer.encode("he<|MASK|>") == [256, 257]
    assert "model of type" not in "".join(capfd.readouterr())
