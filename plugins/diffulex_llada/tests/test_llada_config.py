"""Reading config.json: everything that the network cannot do is refused, all at once."""

from __future__ import annotations

import subprocess
import sys

import attrs
import pytest

from diffulex_core.errors import ConfigError
from diffulex_llada.config import TINY, check_config, decoder_spec
from tests.core.checkpoints import llada_config


def test_the_8b_configuration_gives_its_published_shape() -> None:
    config = llada_config(
        d_model=4096, n_layers=32, n_heads=32, n_kv_heads=32, mlp_hidden_size=12288, vocab_size=126464,
        embedding_size=126464, rope_theta=500000.0, max_sequence_length=4096,
    )  # fmt: skip
    spec = decoder_spec(config)
    assert check_config(config) == []
    assert attrs.asdict(spec) == {
        "vocab_size": 126464, "hidden_size": 4096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 32,
        "ffn_size": 12288, "rope_theta": 500000.0, "head_dim": 128, "rope_fraction": 1.0, "norm": "rms",
        "norm_eps": 1e-5, "activation": "silu", "qk_norm": False, "qkv_bias": False, "out_bias": False,
        "mlp_bias": False, "head_bias": False, "tie_embeddings": False, "moe": None, "sparse_layers": frozenset(),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_kv_heads": None}, {"num_kv_heads": 4}),
        ({"n_kv_heads": None, "multi_query_attention": True}, {"num_kv_heads": 1}),
        ({"n_kv_heads": 1, "multi_query_attention": True}, {"num_kv_heads": 1}),
        ({"mlp_hidden_size": None, "mlp_ratio": 3}, {"ffn_size": 96}),
        ({"embedding_size": None, "vocab_size": 77}, {"vocab_size": 77}),
        ({"embedding_size": 80, "vocab_size": 77}, {"vocab_size": 80}),
        ({"weight_tying": True}, {"tie_embeddings": True, "head_bias": False}),
        ({"include_qkv_bias": True}, {"qkv_bias": True, "out_bias": False, "mlp_bias": False, "head_bias": False}),
        ({"include_bias": True}, {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "head_bias": True}),
        ({"include_bias": True, "weight_tying": True}, {"out_bias": True, "head_bias": False}),
        ({"rope_scaling": None}, {}),
        ({"rope_scaling": {"rope_type": "default"}}, {}),
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5}),
        ({"rms_norm_eps": 1e-6}, {"norm_eps": 1e-6}),
    ],
)
def test_null_and_optional_keys_mean_what_the_published_class_makes_of_them(
    changes: dict[str, object], expected: dict[str, object]
) -> None:
    spec = attrs.asdict(decoder_spec(llada_config(**changes)))
    assert {key: spec[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alibi": True}, "alibi is True"),
        ({"rope": False}, "rope is False"),
        ({"layer_norm_type": "default"}, "layer_norm_type is 'default'"),
        ({"layer_norm_with_affine": False}, "layer_norm_with_affine is False"),
        ({"bias_for_layer_norm": True}, "bias_for_layer_norm"),
        ({"bias_for_layer_norm": None, "include_bias": True}, "bias_for_layer_norm"),
        ({"block_type": "sequential"}, "block_type is 'sequential'"),
        ({"activation_type": "swiglu"}, "activation_type is 'swiglu'"),
        ({"attention_layer_norm": True}, "attention_layer_norm is True"),
        ({"scale_logits": True}, "scale_logits is True"),
        ({"input_emb_norm": True}, "input_emb_norm is True"),
        ({"block_group_size": 2}, "block_group_size is 2"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling asks for 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters asks for 'yarn'"),
        ({"n_heads": 3}, "d_model 32 is not a multiple of n_heads 3"),
        ({"n_heads": 4, "n_kv_heads": 3}, "4 query heads cannot share 3"),
        ({"n_heads": 32, "n_kv_heads": 32}, "even number"),
        ({"n_kv_heads": 2, "multi_query_attention": True}, "multi_query_attention contradicts n_kv_heads=2"),
        ({"embedding_size": 200}, "embedding_size is 200, less than vocab_size 259"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"n_layers": "2"}, "n_layers is '2'"),
        ({"d_model": True}, "d_model is True"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
        ({"weight_tying": 1}, "weight_tying is 1"),
        ({"include_bias": "yes"}, "include_bias is 'yes'"),
    ],
)
def test_what_the_network_cannot_do_is_refused_by_name_and_value(changes: dict[str, object], words: str) -> None:
    config = llada_config(**changes)
    (problem,) = check_config(config)
    assert words in problem
    with pytest.raises(ConfigError) as raised:
        decoder_spec(config)
    assert raised.value.problems == (problem,)


def test_all_problems_come_at_once() -> None:
    config = llada_config(alibi=True, scale_logits=True, n_layers=-1, rope_theta="big")
    del config["weight_tying"], config["rope"]
    problems = check_config(config)
    assert len(problems) == 6
    for key in ("alibi", "scale_logits", "n_layers", "rope_theta", "weight_tying is missing", "rope is missing"):
        assert any(key in problem for problem in problems)


@pytest.mark.parametrize(
    "key",
    ["d_model", "n_layers", "n_heads", "vocab_size", "rope_theta", "rms_norm_eps", "layer_norm_type", "block_type"],
)
def test_a_missing_key_is_never_replaced_by_a_class_default(key: str) -> None:
    config = llada_config()
    del config[key]
    assert any(f"{key} is missing" in problem for problem in check_config(config))


def test_the_small_configuration_is_valid_and_checking_it_imports_no_torch() -> None:
    assert check_config(TINY) == []
    code = (
        "import sys; import diffulex_llada.plugin; from diffulex_llada.config import TINY, check_config;"
        "sys.exit('torch' in sys.modules or bool(check_config(TINY)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
