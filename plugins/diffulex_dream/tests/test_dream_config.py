"""config.json and tokenizer of Dream and DreamReasoner: what is read, what contradicts itself, which family it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from diffulex_core.config import EngineConfig, resolve
from diffulex_core.config.load import load_config
from diffulex_core.errors import ConfigError
from diffulex_core.host import Host
from diffulex_core.layers import DecoderSpec
from diffulex_core.plugin import Capability
from diffulex_dream.config import TINY_DREAM, TINY_REASONER, check_dream, check_reasoner, dream_spec, reasoner_spec

HOST = Host.discover(["diffulex-dream", "diffulex-multibd"], environ={})

DREAM_7B: dict[str, Any] = {
    "architectures": ["DreamModel"], "model_type": "Dream", "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151643, "full_attn_mask": True, "hidden_act": "silu", "hidden_size": 3584,
    "initializer_range": 0.02, "intermediate_size": 18944, "mask_token_id": 151666, "max_position_embeddings": 131072,
    "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "pad_token_id": 151643, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000.0,
    "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 152064,
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
}  # fmt: skip
REASONER_8B: dict[str, Any] = {
    "architectures": ["DreamForCausalLM"], "model_type": "Dream", "attention_bias": False, "block_size": 32,
    "head_dim": None, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12288, "mask_token_id": 151669,
    "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000.0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "vocab_size": 151936, "eos_token_id": 151645,
}  # fmt: skip


def configure(checkpoint: Mapping[str, Any], options: Mapping[str, object] | None = None, **given: Any) -> EngineConfig:
    return resolve("somewhere", options, host=HOST, checkpoint=checkpoint, **given)


def test_published_configurations_give_a_qwen2_and_a_qwen3() -> None:
    assert check_dream(DREAM_7B) == []
    assert dream_spec(DREAM_7B) == DecoderSpec(
        vocab_size=152064, hidden_size=3584, num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128, ffn_size=18944,
        rope_theta=1000000.0, norm_eps=1e-6, qkv_bias=True,
    )  # fmt: skip
    assert check_reasoner(REASONER_8B) == []
    assert reasoner_spec(REASONER_8B) == DecoderSpec(
        vocab_size=151936, hidden_size=4096, num_layers=36, num_heads=32, num_kv_heads=8, head_dim=128, ffn_size=12288,
        rope_theta=1000000.0, norm_eps=1e-6, qk_norm=True,
    )  # fmt: skip


@pytest.mark.parametrize("key", ["hidden_size", "rope_theta", "num_key_value_heads", "intermediate_size", "vocab_size"])
@pytest.mark.parametrize(("check", "config"), [(check_dream, TINY_DREAM), (check_reasoner, TINY_REASONER)])
def test_a_missing_key_is_never_replaced_by_a_class_default(
    check: Callable[[Mapping[str, object]], list[str]], config: Mapping[str, object], key: str
) -> None:
    [problem] = check({name: value for name, value in config.items() if name != key})
    assert f"{key} is missing" in problem


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_size": 32}, "block_size is 32, which is DreamReasoner's (DreamForCausalLM)"),
        ({"attention_bias": False}, "attention_bias is False, which is DreamReasoner's"),
        ({"architectures": ["DreamForCausalLM"]}, "architectures is ['DreamForCausalLM'], which is DreamReasoner's"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling asks for 'yarn'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["sliding_attention"] * 28}, "layer_types is ['sliding_attention'"),
        ({"use_mrope": True}, "use_mrope is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_attention_heads": 3}, "hidden_size 32 is not a multiple of num_attention_heads 3"),
    ],
)
def test_what_is_not_dreams_is_refused_by_name_and_value(changes: dict[str, Any], words: str) -> None:
    problems = check_dream({**TINY_DREAM, **changes})
    assert any(words in problem for problem in problems)
    with pytest.raises(ConfigError) as raised:
        dream_spec({**TINY_DREAM, **changes})
    assert list(raised.value.problems) == problems


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_bias": True}, "attention_bias is True, which is Dream's (DreamModel), but the rest is read as"),
        ({"architectures": ["DreamModel"]}, "architectures is ['DreamModel'], which is Dream's"),
    ],
)
def test_what_is_not_the_reasoners_is_refused_by_name_and_value(changes: dict[str, Any], words: str) -> None:
    [problem] = check_reasoner({**TINY_REASONER, **changes})
    assert words in problem
    with pytest.raises(ConfigError):
        reasoner_spec({**TINY_REASONER, **changes})


def test_dream_may_say_that_it_has_biases() -> None:
    assert check_dream({**TINY_DREAM, "attention_bias": True}) == []
    assert check_reasoner({key: value for key, value in TINY_REASONER.items() if key != "attention_bias"}) == []


@pytest.mark.parametrize(
    ("config", "family", "strategy", "mask", "eos"),
    [
        (DREAM_7B, "dream", "d2f", 151666, (151643,)),
        (REASONER_8B, "dream_reasoner", "multi_bd", 151669, (151645,)),
    ],
)
def test_architectures_decide_between_the_two(
    config: dict[str, Any], family: str, strategy: str, mask: int, eos: tuple[int, ...]
) -> None:
    resolved = configure(config)
    assert (resolved.family.name, resolved.strategy.name) == (family, strategy)
    assert (resolved.model.mask_token_id, resolved.model.eos_token_ids) == (mask, eos)
    assert resolved.decoding.block_size == 32


def test_without_architectures_both_are_named_and_the_user_has_to_choose() -> None:
    bare = {key: value for key, value in REASONER_8B.items() if key != "architectures"}
    with pytest.raises(ConfigError, match=r"Several model families claim.*'dream' .*'dream_reasoner'"):
        configure(bare)
    assert configure(bare, {"model_name": "dream_reasoner"}).family.name == "dream_reasoner"
    with pytest.raises(ConfigError, match=r"block_size is 32, which is DreamReasoner's"):
        configure(bare, {"model_name": "dream"})


def test_the_wrong_one_of_the_two_is_refused_though_the_user_asks_for_it() -> None:
    with pytest.raises(ConfigError, match=r"model_name is 'dream'.*config\.json belongs to 'dream_reasoner'"):
        configure(REASONER_8B, {"model_name": "dream"})


@pytest.mark.parametrize("alias", ["diffucoder", "dream_coder"])
def test_the_coders_are_dreams_of_another_name(alias: str) -> None:
    assert configure(DREAM_7B, {"model_name": alias}).family is configure(DREAM_7B).family


def test_ids_that_config_json_does_not_name_come_from_the_tokenizer_and_then_from_the_family() -> None:
    bare = {key: value for key, value in DREAM_7B.items() if key not in ("mask_token_id", "eos_token_id")}
    tokens = {"<|mask|>": 151670, "<|im_end|>": 151645, "<|dlm_pad|>": 151668}
    found = configure(bare, tokenizer_tokens=tokens, tokenizer_eos_ids=(151643,)).model
    assert (found.mask_token_id, found.eos_token_ids) == (151670, (151643, 151645, 151668))
    known = configure(bare).model
    assert (known.mask_token_id, known.eos_token_ids) == (151666, (151643, 151645))


def test_an_end_of_turn_ends_an_answer_beside_the_end_of_text() -> None:
    tokens = {"<|mask|>": 151666, "<|im_end|>": 151645, "<|dlm_pad|>": 151667}
    assert configure(DREAM_7B, tokenizer_tokens=tokens).model.eos_token_ids == (151643, 151645, 151667)
    reasoner = configure(REASONER_8B, tokenizer_tokens={"<|im_end|>": 151645, "<|endoftext|>": 151643})
    assert reasoner.model.eos_token_ids == (151645,)


def test_a_mask_id_that_is_another_token_of_the_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mask_token_id is 151666.*the tokenizer's '<\|mask\|>' is 151669"):
        configure(DREAM_7B, tokenizer_tokens={"<|mask|>": 151669})


def test_the_families_say_what_they_can_do() -> None:
    dream, reasoner = HOST.models.get("dream"), HOST.models.get("dream_reasoner")
    assert (dream.logits, reasoner.logits) == ("shifted", "aligned")
    assert dream.provides == {
        Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL, Capability.FULL_PREFIX, Capability.FULL_ATTENTION,
    }  # fmt: skip
    assert reasoner.provides == {Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL}
    assert configure(DREAM_7B, {"decoding_strategy": "multi_bd"}).strategy.name == "multi_bd"
    with pytest.raises(ConfigError, match="full_prefix"):
        configure(REASONER_8B, {"decoding_strategy": "d2f"})


def test_a_tokenizer_that_comes_as_code_is_read_as_qwen2s(tmp_path: Path) -> None:
    """The layout of the published checkpoints: vocabulary, merges, and a class that only their code has."""
    alphabet = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    (tmp_path / "vocab.json").write_text(json.dumps({**alphabet, "he": 256}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\n")
    texts = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"]
    tokens = dict(zip(texts, range(257, 262), strict=True))
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    added = {str(number): {"content": text, "special": True, **flags} for text, number in tokens.items()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "DreamTokenizer", "added_tokens_decoder": added, "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "mask_token": "<|mask|>", "unk_token": None,
        "additional_special_tokens": ["<|beginoftext|>", "<|mask|>"], "add_prefix_space": False, "errors": "replace",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    }))  # fmt: skip
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({
        name: {"content": text, **flags} for name, text in (("eos_token", texts[0]), ("mask_token", texts[4]))
    }))  # fmt: skip
    (tmp_path / "added_tokens.json").write_text(json.dumps(tokens))
    (tmp_path / "tokenization_dream.py").write_text("raise SystemExit('this code must not run')")
    config = {**TINY_DREAM, "vocab_size": 270, "eos_token_id": 257, "pad_token_id": 257, "mask_token_id": 261}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_config(str(tmp_path), {}, host=HOST)
    assert loaded.config.family.name == "dream"
    assert (loaded.config.model.mask_token_id, loaded.config.model.eos_token_ids) == (261, (257, 259))
    assert loaded.tokenizer.encode("he<|mask|>") == [256, 261]
    chat = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False)
    assert chat == "<|im_start|>user\nhe<|im_end|>\n"
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("hé, 12\n\n x")) == "hé, 12\n\n x"


def test_checking_a_configuration_imports_no_torch() -> None:
    code = (
        "import sys; import diffulex_dream.plugin; from diffulex_dream.config import *;"
        "sys.exit('torch' in sys.modules or bool(check_dream(TINY_DREAM) + check_reasoner(TINY_REASONER)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
