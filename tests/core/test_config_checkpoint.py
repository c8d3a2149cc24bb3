"""What a checkpoint decides: length limit, mask token, end tokens, decoding defaults and sampling defaults."""

from __future__ import annotations

from typing import Any

import pytest

from diffulex_core.config import Origin
from diffulex_core.config.schema import build_schema, core_sections
from tests.core.config_kit import CHECKPOINT, configure, problems_of

CONFIG_JSON = Origin(source="checkpoint", detail="config.json")


def without(*names: str, **more: Any) -> dict[str, Any]:
    return {**{name: value for name, value in CHECKPOINT.items() if name not in names}, **more}


@pytest.mark.parametrize(
    ("checkpoint", "limit"),
    [
        (without(max_position_embeddings=512), 512),
        (without(max_position_embeddings=1), 1),
        (without("max_position_embeddings", max_sequence_length=256), 256),
        (without("max_position_embeddings", text_config={"max_position_embeddings": 128}), 128),
        (without(max_position_embeddings=100_000), 2048),
    ],
)
def test_the_default_length_is_lowered_to_the_checkpoints(checkpoint: dict[str, Any], limit: int) -> None:
    config = configure(checkpoint=checkpoint)
    assert config.schedule.max_model_len == limit
    assert config.origins["max_model_len"].source == ("default" if limit == 2048 else "checkpoint")
    assert not config.warnings


def test_a_length_beyond_the_checkpoints_is_refused_when_a_user_asks_for_it() -> None:
    [problem] = problems_of({"max_model_len": 4097})
    assert "the checkpoint's max_position_embeddings is 4096; use at most 4096" in problem


def test_a_checkpoint_without_length_needs_one_from_the_user() -> None:
    checkpoint = without("max_position_embeddings")
    [problem] = problems_of(checkpoint=checkpoint)
    assert "give max_model_len" in problem
    assert configure({"max_model_len": 9000}, checkpoint=checkpoint).schedule.max_model_len == 9000


@pytest.mark.parametrize("length", [0, -1, "long", 10.5, True])
def test_a_length_that_is_none_is_reported(length: object) -> None:
    [problem] = problems_of(checkpoint=without(max_position_embeddings=length))
    assert "max_position_embeddings" in problem


def test_the_block_size_of_config_json_is_used_unless_something_stronger_names_one() -> None:
    trained = without(block_size=8)
    config = configure(checkpoint=trained)
    assert (config.decoding.block_size, config.origins["block_size"]) == (8, CONFIG_JSON)
    assert configure(checkpoint=trained, generation_config={"block_size": 16}).decoding.block_size == 16
    assert configure({"block_size": 4}, checkpoint=trained).decoding.block_size == 4
    assert configure(checkpoint=without(block_size=None)).decoding.block_size == 32


@pytest.mark.parametrize(
    ("size", "words"),
    [("8", "'8', which is no whole number"), (True, "True, which is no"), (7, "choose one of"), (-4, "choose one of")],
)
def test_a_block_size_of_config_json_that_is_none_is_reported(size: object, words: str) -> None:
    [problem] = problems_of(checkpoint=without(block_size=size))
    assert "block_size" in problem
    assert "config.json" in problem
    assert words in problem


def test_the_mask_token_comes_from_the_strongest_source_that_names_one() -> None:
    bare = without("mask_token_id")
    assert configure({"mask_token_id": 9}, tokenizer_mask_id=3).model.mask_token_id == 9
    config = configure(generation_config={"mask_token_id": 5}, tokenizer_mask_id=3)
    assert (config.model.mask_token_id, config.origins["mask_token_id"]) == (7, CONFIG_JSON)
    nested = configure(checkpoint={**bare, "text_config": {"mask_token_id": 8}}, tokenizer_mask_id=3)
    assert nested.model.mask_token_id == 8
    config = configure(checkpoint=bare, generation_config={"mask_token_id": 5}, tokenizer_mask_id=3)
    assert (config.model.mask_token_id, config.origins["mask_token_id"].detail) == (5, "generation_config.json")
    config = configure(checkpoint=bare, tokenizer_mask_id=3)
    assert (config.model.mask_token_id, config.origins["mask_token_id"]) == (3, Origin(source="tokenizer"))


def test_a_mask_token_of_zero_is_one() -> None:
    assert configure(checkpoint=without(mask_token_id=0), tokenizer_mask_id=3).model.mask_token_id == 0


def test_a_family_that_marks_with_a_mask_token_needs_one_and_others_do_not() -> None:
    bare = without("mask_token_id")
    [problem] = problems_of(checkpoint=bare)
    assert "give mask_token_id" in problem
    beta = {**bare, "architectures": ["BetaLM"]}
    assert configure({"decoding_strategy": "blocks"}, checkpoint=beta).model.mask_token_id is None


def test_a_family_without_mask_token_has_none_whoever_names_one() -> None:
    beta = without(architectures=["BetaLM"])
    config = configure({"decoding_strategy": "blocks"}, checkpoint=beta, tokenizer_mask_id=4)
    assert (config.model.mask_token_id, config.warnings) == (None, ())
    config = configure({"decoding_strategy": "blocks", "mask_token_id": 4}, checkpoint=beta)
    assert config.model.mask_token_id is None
    [warning] = config.warnings
    assert "mask_token_id is 4" in warning
    assert "'beta' has no mask token" in warning


@pytest.mark.parametrize("token", [-1, "mask", 2.0, True])
def test_a_mask_token_that_is_none_is_reported(token: object) -> None:
    [problem] = problems_of(checkpoint=without(mask_token_id=token))
    assert "config.json has mask_token_id" in problem


@pytest.mark.parametrize(
    ("config_json", "generation", "tokenizer", "expected"),
    [
        (2, None, (), (2,)),
        ([4, 2], None, (), (2, 4)),
        (2, [2, 3], (9,), (2, 3, 9)),
        (None, 3, (), (3,)),
        (None, None, (9,), (9,)),
        (None, None, (), ()),
        (0, None, (), (0,)),
    ],
)
def test_end_tokens_are_those_of_all_sources_together(
    config_json: object, generation: object, tokenizer: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    config = configure(
        checkpoint=without(eos_token_id=config_json),
        generation_config={"eos_token_id": generation},
        tokenizer_eos_ids=tokenizer,
    )
    assert config.model.eos_token_ids == expected


def test_the_origin_of_end_tokens_names_every_source_that_gave_one() -> None:
    config = configure(generation_config={"eos_token_id": 3}, tokenizer_eos_ids=(9,))
    assert config.origins["eos_token_ids"].detail == "config.json, generation_config.json, tokenizer"
    assert configure(tokenizer_eos_ids=(2,)).origins["eos_token_ids"] == CONFIG_JSON
    only_tokenizer = configure(checkpoint=without("eos_token_id"), tokenizer_eos_ids=(9,))
    assert only_tokenizer.origins["eos_token_ids"] == Origin(source="tokenizer")


def test_end_tokens_of_the_user_replace_the_others() -> None:
    config = configure({"eos_token_ids": [5, 3, 5]}, tokenizer_eos_ids=(9,))
    assert config.model.eos_token_ids == (3, 5)
    assert config.origins["eos_token_ids"].by_user
    assert configure({"eos_token_ids": []}, tokenizer_eos_ids=(9,)).model.eos_token_ids == ()


@pytest.mark.parametrize("name", ["mask_token_id", "eos_token_ids"])
def test_ids_outside_the_vocabulary_are_refused(name: str) -> None:
    [problem] = problems_of({name: 1000})
    assert "the vocabulary of config.json has 1000 tokens" in problem
    assert not problems_of({name: 1000}, checkpoint=without(embedding_size=1024))


def test_a_checkpoint_sets_decoding_defaults_that_the_user_may_override() -> None:
    generation = {
        "block_size": 8,
        "buffer_size": 2,
        "page_size": 16,
        "accept_threshold": 0.75,
        "enable_prefix_caching": False,
        "decoding_thresholds": {"accept_threshold": 0.1, "edit_threshold": 0.2},
    }
    config = configure({"buffer_size": 5}, generation_config=generation)
    assert (config.decoding.block_size, config.decoding.buffer_size, config.cache.page_size) == (8, 5, 16)
    assert config.decoding.decoding_thresholds.accept_threshold == 0.75
    assert config.decoding.decoding_thresholds.edit_threshold == 0.2
    assert not config.cache.enable_prefix_caching
    assert config.origins["block_size"] == Origin(source="checkpoint", detail="generation_config.json")
    assert not config.warnings


def test_a_checkpoint_sets_nothing_but_decoding() -> None:
    allowed = {spec.name for spec in build_schema(core_sections()) if spec.info.generation_config}
    thresholds = {name for name in allowed if name.endswith("_threshold")}
    assert len(thresholds) == 6
    assert allowed - thresholds == {
        "decoding_strategy",
        "sampling_mode",
        "block_size",
        "buffer_size",
        "page_size",
        "enable_prefix_caching",
    }
    hostile = {"trace_path": "/etc/x", "max_num_reqs": 1, "profiler_config": {"profiler": "torch"}, "device": "cpu"}
    assert configure(generation_config=hostile) == configure()


def test_a_bad_value_in_generation_config_names_the_file() -> None:
    [problem] = problems_of(generation_config={"block_size": 7})
    assert problem.startswith("block_size is 7 (checkpoint, generation_config.json; core, section decoding)")


def test_sampling_defaults_are_passed_on_under_their_names_here() -> None:
    generation = {"temperature": 0.5, "max_new_tokens": 64, "top_p": 0.9, "top_k": 40, "transformers_version": "5"}
    config = configure(generation_config=generation)
    assert config.sampling_defaults == {"temperature": 0.5, "max_tokens": 64, "top_p": 0.9, "top_k": 40}


def test_a_top_k_of_zero_means_all_tokens_there() -> None:
    assert configure(generation_config={"top_k": 0}).sampling_defaults == {}


def test_sampling_defaults_out_of_range_are_refused() -> None:
    [problem] = problems_of(generation_config={"temperature": -1})
    assert "generation_config.json" in problem
    assert "temperature" in problem


@pytest.mark.parametrize(
    ("generation_config", "expected"),
    [
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
    ],
)
def test_do_sample_false_means_greedy_whatever_temperature_stands_beside_it(
    generation_config: dict[str, Any], expected: dict[str, float]
) -> None:
    assert configure(generation_config=generation_config).sampling_defaults == expected


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        (without(quantization_config={"quant_method": "fp8"}), "quantization_config (fp8)"),
        (without(text_config={"quantization_config": {"quant_method": "awq"}}), "quantization_config (awq)"),
        (without(compression_config={"format": "pack"}), "compression_config (None)"),
    ],
)
def test_quantised_weights_are_refused_before_they_are_read(checkpoint: dict[str, Any], words: str) -> None:
    [problem] = problems_of(checkpoint=checkpoint)
    assert words in problem
    assert "use the checkpoint in bf16" in problem


@pytest.mark.parametrize("nothing", [None, {}])
def test_an_empty_quantisation_is_none(nothing: object) -> None:
    configure(checkpoint=without(quantization_config=nothing))
