"""Reading config.json: both spellings, the published defaults, and everything else refused, all at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from transformers import DiffusionGemmaConfig, DiffusionGemmaTextConfig

from diffulex_core.errors import ConfigError
from diffulex_gemma.config import TINY, check_config, gemma_spec
from diffulex_gemma.spec import GemmaSpec, LayerKind

MIXTURE = {"num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
RELEASED: Mapping[str, Any] = {
    "model_type": "diffusion_gemma", "architectures": ["DiffusionGemmaForBlockDiffusion"], "canvas_length": 256,
    "tie_word_embeddings": True, "image_token_id": 258880, "vision_config": {"model_type": "gemma4_vision"},
    "text_config": {
        "model_type": "diffusion_gemma_text", "hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30,
        "num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 2, "head_dim": 256,
        "global_head_dim": 512, "sliding_window": 1024, "hidden_activation": "gelu_pytorch_tanh",
        "final_logit_softcapping": 30.0, "rms_norm_eps": 1e-6, "vocab_size": 262144,
        "max_position_embeddings": 262144, "use_bidirectional_attention": "vision", "attention_bias": False,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        },
        **MIXTURE,
    },
}  # fmt: skip
ROPE: Mapping[str, Any] = RELEASED["text_config"]["rope_parameters"]


def released(**text: Any) -> dict[str, Any]:
    """The released configuration with other values in text_config."""
    return {**RELEASED, "text_config": {**RELEASED["text_config"], **text}}


def minimal(**text: Any) -> dict[str, Any]:
    """Only what has no default."""
    return {"text_config": {**MIXTURE, **text}}


def test_the_released_configuration_gives_its_published_shape() -> None:
    assert check_config(RELEASED) == []
    assert gemma_spec(RELEASED) == GemmaSpec(
        vocab_size=262144, hidden_size=2816, ffn_size=2112, num_heads=16, norm_eps=1e-6, softcap=30.0,
        num_experts=128, experts_per_token=8, expert_size=704,
        sliding=LayerKind(
            window=1024, num_kv_heads=8, head_dim=256, rope_theta=10000.0, rope_pairs=128, own_values=True
        ),
        full=LayerKind(window=None, num_kv_heads=2, head_dim=512, rope_theta=1e6, rope_pairs=64, own_values=False),
        full_layers=(False, False, False, False, False, True) * 5, canvas_length=256,
    )  # fmt: skip


def test_the_spelling_of_recent_transformers_says_the_same() -> None:
    text = {key: value for key, value in RELEASED["text_config"].items() if "global" not in key}
    text["per_layer_config"] = {str(layer): {"head_dim": 512, "num_key_value_heads": 2} for layer in range(5, 30, 6)}
    assert gemma_spec({**RELEASED, "text_config": text}) == gemma_spec(RELEASED)
    both = {**text, "global_head_dim": 512, "num_global_key_value_heads": 2}
    assert gemma_spec({**RELEASED, "text_config": both}) == gemma_spec(RELEASED)


@pytest.mark.parametrize("changes", [{}, {"num_hidden_layers": 8}, {"num_global_key_value_heads": 1}])
def test_what_is_left_out_means_what_the_published_class_makes_of_it(changes: dict[str, Any]) -> None:
    native = DiffusionGemmaConfig(text_config=DiffusionGemmaTextConfig(**MIXTURE, **changes))
    spelled_out = json.loads(native.to_json_string(use_diff=False))
    assert gemma_spec(minimal(**changes)) == gemma_spec(spelled_out)


def test_the_last_layer_is_full_whatever_is_said() -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    assert gemma_spec(minimal(num_hidden_layers=3, layer_types=kinds)).full_layers == (True, False, True)
    assert gemma_spec(minimal(num_hidden_layers=8)).full_layers == (*[False] * 5, True, False, True)


def test_without_a_number_of_its_own_a_full_layer_has_as_many_key_value_heads_as_the_others() -> None:
    assert gemma_spec(minimal(num_key_value_heads=2)).full.num_kv_heads == 2
    assert gemma_spec(released(num_global_key_value_heads=None)).full.num_kv_heads == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"num_experts": None}, "num_experts is None"),
        ({"top_k_experts": 129}, "top_k_experts is 129, more than num_experts 128"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"hidden_size": "2816"}, "hidden_size is '2816'"),
        ({"final_logit_softcapping": -1.0}, "final_logit_softcapping is -1.0"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types names 4 layers, num_hidden_layers is 30"),
        ({"layer_types": ["linear_attention"] * 30}, "layer_types is ["),
        ({"num_key_value_heads": 3}, "16 query heads cannot share 3 key/value heads evenly (sliding_attention)"),
        ({"num_global_key_value_heads": 3}, "16 query heads cannot share 3 key/value heads evenly (full_attention)"),
        ({"head_dim": 255}, "sliding_attention layers have 255"),
        ({"rope_parameters": {"full_attention": ROPE["full_attention"]}}, "must hold a table for sliding_attention"),
        (
            {"rope_parameters": {**ROPE, "full_attention": {"rope_type": "yarn", "rope_theta": 1e6}}},
            "rope_parameters of full_attention: rope_type is 'yarn'",
        ),
        (
            {"rope_parameters": {**ROPE, "full_attention": {"rope_type": "proportional", "rope_theta": 1e6}}},
            "partial_rotary_factor is missing",
        ),
        (
            {"rope_parameters": {**ROPE, "full_attention": {**ROPE["full_attention"], "partial_rotary_factor": 1.5}}},
            "partial_rotary_factor is 1.5",
        ),
        (
            {"rope_parameters": {**ROPE, "sliding_attention": {"rope_type": "default", "partial_rotary_factor": 0.5,
             "rope_theta": 1e4}}},
            "partial_rotary_factor is 0.5",
        ),
        (
            {"rope_parameters": {**ROPE, "full_attention": {**ROPE["full_attention"], "factor": 8.0}}},
            "factor is 8.0",
        ),
        ({"rope_parameters": {**ROPE, "sliding_attention": {"rope_type": "default"}}}, "rope_theta is missing"),
        ({"num_global_key_value_heads": None, "per_layer_config": {}},
         "global_head_dim is 512, but per_layer_config says 256"),
        ({"global_head_dim": 256, "num_global_key_value_heads": None, "per_layer_config": {"0": {"head_dim": 128}}},
         "sliding_attention layers different head_dim (128, 256)"),
        ({"global_head_dim": 256, "num_global_key_value_heads": 8, "per_layer_config": {"30": {"head_dim": 256}}},
         "per_layer_config, layer '30': there is no such layer"),
        ({"global_head_dim": 256, "num_global_key_value_heads": 8, "per_layer_config": {"5": {"sliding_window": 3}}},
         "per_layer_config, layer '5': sliding_window cannot differ"),
        ({"global_head_dim": 256, "num_global_key_value_heads": 8, "per_layer_config": [256]},
         "per_layer_config is [256]"),
    ],
)  # fmt: skip
def test_what_the_network_cannot_do_is_refused_by_name_and_value(text: dict[str, Any], words: str) -> None:
    config = released(**text)
    (problem,) = check_config(config)
    assert problem.startswith("text_config: ")
    assert words in problem
    with pytest.raises(ConfigError) as raised:
        gemma_spec(config)
    assert raised.value.problems == (problem,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_config": None}, "text_config is None"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"canvas_length": 0}, "canvas_length is 0"),
    ],
)
def test_what_stands_at_the_top_is_checked_too(changes: dict[str, Any], words: str) -> None:
    (problem,) = check_config({**RELEASED, **changes})
    assert words in problem


def test_all_problems_come_at_once() -> None:
    config = released(attention_bias=True, rms_norm_eps="small", rope_parameters={}, num_experts=None, head_dim=-2)
    problems = check_config({**config, "canvas_length": "long"})
    assert len(problems) == 7
    for words in ("canvas_length", "attention_bias", "rms_norm_eps", "num_experts", "head_dim is -2", "for full_att"):
        assert any(words in problem for problem in problems)


def test_the_small_configuration_is_valid_and_checking_it_imports_no_torch() -> None:
    assert check_config(TINY) == []
    code = (
        "import sys; import diffulex_gemma.plugin, diffulex_gemma.pattern;"
        "from diffulex_gemma.config import TINY, check_config;"
        "sys.exit('torch' in sys.modules or bool(check_config(TINY)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
