"""An engine on a tiny checkpoint: it is recognised, loads and runs; strategies that do not fit are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffulex_core.config.names import misfits
from diffulex_core.engine import Diffulex
from diffulex_core.errors import ConfigError, IncompatibleError
from diffulex_core.host import Host
from diffulex_core.sampling_params import SamplingParams
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
    return Host.discover(environ={})


@pytest.mark.parametrize("attn_impl", ["torch_cpu", "torch_ref"])
def test_the_checkpoint_is_recognised_loaded_and_run(folder: Path, host: Host, attn_impl: str) -> None:
    sizes = {"block_size": 256, "page_size": 256, "num_pages": 2}
    with Diffulex(folder, host=host, attn_impl=attn_impl, **sizes) as engine:
        config = engine.config
    assert config.family.name == "diffusion_gemma"
    assert (config.decoding.block_size, config.cache.page_size) == (256, 256)
    assert config.schedule.max_model_len == 256
    assert {1, 106} <= set(config.model.eos_token_ids)


def test_the_mask_token_of_the_tokenizer_is_an_ordinary_token(folder: Path, host: Host) -> None:
    with Diffulex(folder, host=host, num_pages=8, skip_warmup=True) as engine:
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
    assert "'diffusion_gemma'" in text


def test_no_other_family_is_offered_the_strategy(host: Host) -> None:
    fitting = [
        family.name for family in host.models if not misfits(family, host.strategies.get("diffusion_gemma"), host)
    ]
    assert fitting == ["diffusion_gemma"]


def test_a_canvas_is_as_long_as_the_checkpoint_says(folder: Path, host: Host) -> None:
    with Diffulex(folder, host=host, num_pages=8, page_size=8, skip_warmup=True) as engine:
        assert engine.config.strategy.name == "diffusion_gemma"
        assert engine.config.decoding.block_size == 4


def test_an_answer_ends_at_the_limit_and_the_stream_shows_drafts(folder: Path, host: Host) -> None:
    rules = {"diffusion_gemma_max_denoising_steps": 3, "diffusion_gemma_confidence_threshold": 0.0}
    with Diffulex(folder, host=host, num_pages=32, page_size=8, **rules) as engine:
        events = list(engine.stream(["what?"], SamplingParams(max_tokens=6, seed=1, ignore_eos=True)))
    assert len(events) == 6
    assert [int(event.canvas.decided.sum()) for event in events] == [0, 0, 4, 4, 4, 8]
    assert [len(event.canvas.tokens) for event in events] == [4, 4, 4, 8, 8, 8]
    assert [event.newly_decided.tolist() for event in events][2] == [5, 6, 7, 8]
    last = events[-1].trajectory
    assert last is not None
    assert len(last.token_ids) == 6
    assert last.nfe == last.nfe_decode == 6
    assert last.tpf == 1.0


def test_log_probabilities_come_with_every_token_of_the_answer(folder: Path, host: Host) -> None:
    rules = {"diffusion_gemma_max_denoising_steps": 3, "skip_warmup": True}
    params = SamplingParams(max_tokens=6, seed=1, ignore_eos=True, logprobs=1)
    with Diffulex(folder, host=host, num_pages=32, page_size=8, **rules) as engine:
        [answer] = engine.generate(["what?"], params)
    assert answer.logprobs is not None
    assert [told and told.token_id for told in answer.logprobs] == list(answer.token_ids)
    assert all(told is not None and told.top == ((told.token_id, told.logprob),) for told in answer.logprobs)


def test_worker_processes_answer_as_the_engine_itself_does(folder: Path, host: Host) -> None:
    rules = {"diffusion_gemma_max_denoising_steps": 3}
    params = [SamplingParams(max_tokens=6, seed=seed, ignore_eos=True) for seed in range(3)]
    prompts = ["one", "two and a half", "3"]
    answers = []
    for replicas in (1, 2):
        with Diffulex(
            folder, host=host, num_pages=32, page_size=8, data_parallel_size=replicas, skip_warmup=True, **rules
        ) as engine:
            answers.append([answer.token_ids for answer in engine.generate(prompts, params)])
    assert answers[0] == answers[1]


def test_a_network_that_cannot_be_run_is_refused_before_anything_is_loaded(tmp_path: Path, host: Host) -> None:
    save(native_model(vocab_size=VOCAB_SIZE, use_bidirectional_attention="all", sliding_window=8), tmp_path)
    write_tokenizer(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"does not suit the model family 'diffusion_gemma'.*is 'all'"):
        Diffulex(tmp_path, host=host)
