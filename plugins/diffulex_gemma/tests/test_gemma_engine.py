"""An engine on a tiny checkpoint: it is recognised, loads and runs; strategies that do not fit are refused."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from diffulex_core.engine import Diffulex
from diffulex_core.errors import ConfigError, IncompatibleError
from diffulex_core.hookspecs import Register
from diffulex_core.host import Host
from diffulex_core.plugin import Capability, DecodingStrategy, hookimpl
from tests.core.checkpoints import MASK_ID, VOCAB_SIZE, write_tokenizer
from tests.families.gemma import native_model, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as published: two end tokens, and a tokenizer that names a mask token."""
    path: Path = tmp_path_factory.mktemp("gemma")
    save(native_model(vocab_size=VOCAB_SIZE, eos_token_id=[1, 106], sliding_window=300), path)
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def host() -> Host:
    """The installed plugins, and a strategy with DiffusionGemma's pattern."""
    plugin = ModuleType("canvas_plugin")

    @hookimpl
    def diffulex_register_strategies(register: Register[DecodingStrategy]) -> None:
        register(
            DecodingStrategy(
                name="canvas_test",
                pattern="diffulex_gemma.pattern:causal_canvas",
                requires={Capability.SELF_CONDITIONING},
                defaults={"buffer_size": 1},
            )
        )

    vars(plugin)["diffulex_register_strategies"] = diffulex_register_strategies
    return Host.discover(environ={}, extra=[plugin])


@pytest.mark.parametrize("attn_impl", ["torch_cpu", "torch_ref"])
def test_the_checkpoint_is_recognised_loaded_and_run(folder: Path, host: Host, attn_impl: str) -> None:
    sizes = {"block_size": 256, "page_size": 256, "num_pages": 2}
    with Diffulex(folder, decoding_strategy="canvas_test", host=host, attn_impl=attn_impl, **sizes) as engine:
        config = engine.config
    assert config.family.name == "diffusion_gemma"
    assert (config.decoding.block_size, config.cache.page_size) == (256, 256)
    assert config.schedule.max_model_len == 256
    assert {1, 106} <= set(config.model.eos_token_ids)


def test_the_mask_token_of_the_tokenizer_is_an_ordinary_token(folder: Path, host: Host) -> None:
    with Diffulex(folder, decoding_strategy="canvas_test", host=host, num_pages=8, skip_warmup=True) as engine:
        assert engine.tokenizer.mask_token_id == MASK_ID
        assert engine.config.model.mask_token_id is None


@pytest.mark.parametrize(
    ("strategy", "missing"), [("multi_bd", "block_causal, mask_token"), ("d2f", "full_prefix, mask_token")]
)
def test_a_strategy_that_fills_masks_is_refused_by_what_it_requires(
    folder: Path, host: Host, strategy: str, missing: str
) -> None:
    with pytest.raises(IncompatibleError) as raised:
        Diffulex(folder, decoding_strategy=strategy, host=host)
    text = str(raised.value)
    assert f"'{strategy}' requires {missing}" in text
    assert "'diffusion_gemma' does not provide" in text
    assert "'canvas_test'" in text


def test_without_a_strategy_those_that_fit_are_listed(folder: Path, host: Host) -> None:
    with pytest.raises(ConfigError, match=r"has no default strategy; give decoding_strategy, one of canvas_test\."):
        Diffulex(folder, host=host)


def test_a_network_that_cannot_be_run_is_refused_before_anything_is_loaded(tmp_path: Path, host: Host) -> None:
    save(native_model(vocab_size=VOCAB_SIZE, use_bidirectional_attention="all", sliding_window=8), tmp_path)
    write_tokenizer(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"does not suit the model family 'diffusion_gemma'.*is 'all'"):
        Diffulex(tmp_path, decoding_strategy="canvas_test", host=host)
