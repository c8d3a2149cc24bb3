"""Fast-dLLM v2: config.json, logits against transformers' Qwen2, and decoding with shifted logits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.attention.reference import TorchReference
from diffulex_core.config import EngineConfig, resolve
from diffulex_core.context import BuildContext
from diffulex_core.errors import CheckpointError, ConfigError
from diffulex_core.host import Host
from diffulex_core.layers import DecoderSpec
from diffulex_core.plugin import Capability
from diffulex_core.protocols import AttentionBackend, DiffusionModel
from diffulex_core.weights import load_weights
from diffulex_fastdllm.config import TINY, check_config, decoder_spec
from diffulex_fastdllm.model import build
from diffulex_fastdllm.options import DualCacheOptions
from diffulex_fastdllm.oracle import hf_reference
from diffulex_fastdllm.weights import WEIGHTS
from tests.core.checkpoints import Checkpoint
from tests.core.forward import CPU, Rows, block_causal, pages, run_model
from tests.families.oracle_decoding import VOCABULARY, Decoding, greedy, prompt_tokens, setting_of
from tests.families.oracle_logits import PAGE, check_cached, check_whole, oracle_logits, token_ids
from tests.families.standard_checkpoints import standard_tensors, write_checkpoint

HOST = Host.discover(["diffulex-fastdllm", "diffulex-multibd"], environ={})
BLOCK = 4
LARGE: dict[str, Any] = {
    "architectures": ["Fast_dLLM_QwenForCausalLM"], "model_type": "Fast_dLLM_Qwen", "bd_size": 32,
    "attention_dropout": 0.0, "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 3584,
    "intermediate_size": 18944, "layer_types": ["full_attention"] * 28, "max_position_embeddings": 32768,
    "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": None,
    "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 152064,
    "auto_map": {"AutoConfig": "configuration.Fast_dLLM_QwenConfig", "AutoModel": "modeling.Fast_dLLM_QwenModel"},
}  # fmt: skip
SMALL: dict[str, Any] = {
    **LARGE, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2,
    "tie_word_embeddings": True, "vocab_size": 151936,
}  # fmt: skip
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "seven queries a key, tied": {},
    "untied": {"tie_word_embeddings": False},
    "six queries a key": {"hidden_size": 48, "num_attention_heads": 12},
    "multi-head": {"num_key_value_heads": 14},
}


def configure(checkpoint: Mapping[str, Any], options: Mapping[str, object] | None = None, **given: Any) -> EngineConfig:
    return resolve("somewhere", options, host=HOST, checkpoint=checkpoint, **given)


def write(folder: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Checkpoint:
    config = {**TINY, **changes}
    return write_checkpoint(folder, config, standard_tensors(config, 4, qkv_bias=True), files=2, dtype=dtype)


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> DiffusionModel:
    model = build(checkpoint.config, BuildContext(dtype=dtype, device=torch.device("meta")))
    load_weights(model, WEIGHTS, checkpoint.folder, checkpoint.config, dtype=dtype, device=CPU, progress=False)
    return model


def test_published_configurations_give_their_shapes() -> None:
    shape = DecoderSpec(
        vocab_size=152064, hidden_size=3584, num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128, ffn_size=18944,
        rope_theta=1000000.0, norm_eps=1e-6, qkv_bias=True,
    )  # fmt: skip
    assert (check_config(LARGE), decoder_spec(LARGE)) == ([], shape)
    small = decoder_spec(SMALL)
    assert (small.num_heads, small.num_kv_heads, small.head_dim, small.tie_embeddings) == (12, 2, 128, True)


def test_a_published_config_names_its_family_and_everything_else_follows() -> None:
    resolved = configure(LARGE)
    assert (resolved.family.name, resolved.strategy.name) == ("fast_dllm_v2", "fast_dllm_v2")
    assert (resolved.model.mask_token_id, resolved.model.eos_token_ids) == (151665, (151645,))
    assert resolved.family.logits == "shifted"
    assert resolved.family.provides == {Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL, "dual_cache"}


@pytest.mark.parametrize(("strategy", "parts"), [("fast_dllm_v2", 4), ("multi_bd", 1)])
def test_the_checkpoints_block_is_the_buffer_of_its_own_strategy_and_the_block_of_others(
    strategy: str, parts: int
) -> None:
    options = {"decoding_strategy": strategy}
    resolved = configure(LARGE, options)
    assert (resolved.decoding.block_size, resolved.origins["block_size"].source) == (32 // parts, "checkpoint")
    assert resolved.decoding.buffer_size == 4
    assert not resolved.warnings
    assert configure({**LARGE, "bd_size": 16}, options).decoding.block_size == 16 // parts
    bare = {key: value for key, value in LARGE.items() if key != "bd_size"}
    assert configure(bare, options).decoding.block_size == 32 // parts


def test_sub_blocks_that_do_not_make_the_checkpoints_block_are_warned_of() -> None:
    [warning] = configure(LARGE, {"block_size": 4}).warnings
    assert "block_size 4 x buffer_size 4 make blocks of 16 tokens" in warning
    assert "blocks of 32 (bd_size" in warning
    assert configure(LARGE, {"buffer_size": 2}).decoding.block_size == 16
    with pytest.raises(ConfigError, match=r"buffer_size is 1, .* use at least 2"):
        configure(LARGE, {"buffer_size": 1})


def test_the_block_cache_has_two_names_and_is_on() -> None:
    for name in ("fdv2_use_block_cache", "use_block_cache"):
        options = configure(LARGE, {name: False}).strategy_options
        assert options == DualCacheOptions(fdv2_use_block_cache=False)
    assert configure(LARGE).strategy_options == DualCacheOptions()


def test_the_mask_token_has_its_pipes_outside() -> None:
    assert configure(LARGE, tokenizer_tokens={"|<MASK>|": 151665, "<|MASK|>": 7}).model.mask_token_id == 151665
    with pytest.raises(ConfigError, match=r"the tokenizer's '\|<MASK>\|' is 151664"):
        configure({**LARGE, "mask_token_id": 151665}, tokenizer_tokens={"|<MASK>|": 151664})


@pytest.mark.parametrize("name", ["Fast_dLLM_V2", "FastdLLMV2", "qwen2"])
def test_no_other_model_type_is_taken_for_it(name: str) -> None:
    with pytest.raises(ConfigError, match="No model family claims this checkpoint"):
        configure({**LARGE, "architectures": None, "model_type": name})
    assert configure({**LARGE, "architectures": None}).family.name == "fast_dllm_v2"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tie_word_embeddings": None}, "tie_word_embeddings is None"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is ['full_attention', 'sliding"),
        ({"layer_types": "full_attention"}, "layer_types is 'full_attention'"),
        ({"bd_size": 0}, "bd_size is 0"),
        ({"attention_bias": False}, "attention_bias is False"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling asks for 'yarn'"),
        ({"num_key_value_heads": 4}, "14 query heads cannot share 4"),
    ],
)
def test_what_the_network_cannot_do_is_refused_by_name_and_value(changes: dict[str, Any], words: str) -> None:
    [problem] = check_config({**TINY, **changes})
    assert words in problem
    with pytest.raises(ConfigError):
        decoder_spec({**TINY, **changes})


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_oracles_with_all_positions_visible_and_block_causally(tmp_path: Path, variant: str) -> None:
    checkpoint = write(tmp_path, **VARIANTS[variant])
    check_whole(load(checkpoint), hf_reference(checkpoint.config, checkpoint.tensors), block=BLOCK)


@pytest.mark.parametrize("backend", [TorchCPU(), TorchReference()], ids=["torch_cpu", "torch_ref"])
@pytest.mark.parametrize("block", [4, 8])
def test_decoding_block_by_block_from_the_cache_equals_the_whole_sequence(
    tmp_path: Path, backend: AttentionBackend, block: int
) -> None:
    checkpoint = write(tmp_path)
    reference = hf_reference(checkpoint.config, checkpoint.tensors)
    check_cached(load(checkpoint), reference, block=block, backend=backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_the_fp32_oracle(tmp_path: Path, dtype: torch.dtype) -> None:
    """The logits' error, relative to the largest logit, is below 3% in bf16 (8 bits) and 0.5% in fp16 (11 bits)."""
    checkpoint = write(tmp_path, dtype=dtype)
    model, ids = load(checkpoint, dtype), token_ids(9, 101)
    rows = Rows(tokens=ids.tolist(), key_end=block_causal(9, BLOCK), table=[0, 1, 2])
    (got,) = run_model(model, [rows], pages(model.kv_geometry, 3, PAGE))
    expected = oracle_logits(hf_reference(checkpoint.config, checkpoint.tensors), ids, block_causal(9, BLOCK))
    bound = {torch.bfloat16: 0.03, torch.float16: 0.005}[dtype]
    assert (got.float() - expected).abs().max() < bound * expected.abs().max()


def test_an_untied_checkpoint_without_head_is_incomplete(tmp_path: Path) -> None:
    stored = standard_tensors(TINY, 4, qkv_bias=True)
    checkpoint = write_checkpoint(tmp_path, {**TINY, "tie_word_embeddings": False}, stored)
    with pytest.raises(CheckpointError, match=r"no 'lm_head\.weight'"):
        load(checkpoint)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("buffer_size", [1, 3])
def test_answers_take_the_oracles_tokens_forwards_and_rows(tmp_path: Path, tied: bool, buffer_size: int) -> None:
    config = {**TINY, **VOCABULARY, "tie_word_embeddings": tied}
    setting = setting_of(block_size=BLOCK, buffer_size=buffer_size, shifted=True)
    checkpoint = write_checkpoint(tmp_path, config, standard_tensors(config, 4, qkv_bias=True))
    network = hf_reference(checkpoint.config, checkpoint.tensors)
    case = Decoding(folder=tmp_path, oracle=network, host=HOST, setting=setting)
    with case.engine() as engine:
        for length in (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 2):
            prompt = prompt_tokens(length, salt=length)
            [answer] = engine.generate(prompt, greedy(14))
            expected = case.expected(prompt, 14)
            assert answer.token_ids == expected.tokens
            assert tuple(step.rows for step in answer.trajectory) == expected.rows


def test_answers_survive_a_cache_hit_and_preemption(tmp_path: Path) -> None:
    config = {**TINY, **VOCABULARY}
    checkpoint = write_checkpoint(tmp_path, config, standard_tensors(config, 4, qkv_bias=True))
    network = hf_reference(checkpoint.config, checkpoint.tensors)
    case = Decoding(folder=tmp_path, oracle=network, host=HOST, setting=setting_of(block_size=BLOCK, shifted=True))
    prompts = [prompt_tokens(8), *(prompt_tokens(length, salt) for salt, length in enumerate((8, 8, 9, 4)))]
    with case.engine(num_pages=12) as engine:
        answers = [*engine.generate(prompts[0], greedy(24)), *engine.generate(prompts[1:], [greedy(24)] * 4)]
    assert answers[1].cached_tokens == 8
    assert sum(answer.preemptions for answer in answers) > 0
    case.check(answers, prompts, 24)


def test_checking_a_configuration_imports_no_torch() -> None:
    code = (
        "import sys; import diffulex_fastdllm.plugin; from diffulex_fastdllm.config import TINY, check_config;"
        "sys.exit('torch' in sys.modules or bool(check_config(TINY)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
