"""multi_bd and d2f: who sees whom, what they need of a family, and what they make of the configuration."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from diffulex_core.compat import missing_capabilities
from diffulex_core.config import EngineConfig, resolve
from diffulex_core.config.describe import explain
from diffulex_core.errors import ConfigError, IncompatibleError
from diffulex_core.host import Host
from diffulex_core.plugin import AttentionPattern, Capability, Extent, ModelFamily, Phase, hookimpl
from diffulex_multibd import plugin as multibd

CHECKPOINT: Mapping[str, Any] = {"architectures": ["ToyLM"], "max_position_embeddings": 512, "mask_token_id": 7}


def toy(*capabilities: str) -> ModelFamily:
    return ModelFamily(
        name="toy", architectures=("ToyLM",), build="toy:build", weights="toy:WEIGHTS", provides=capabilities
    )


EVERYTHING = toy(Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL, Capability.FULL_PREFIX)
EDITING = toy(Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL, Capability.EDIT)


def host_of(family: ModelFamily = EVERYTHING) -> Host:
    @hookimpl
    def diffulex_register_models(register: Callable[[ModelFamily], None]) -> None:
        register(family)

    module = ModuleType("toy_plugin")
    vars(module)["diffulex_register_models"] = diffulex_register_models
    return Host.discover(["multibd"], {}, extra=[module])


def configure(family: ModelFamily = EVERYTHING, **options: object) -> EngineConfig:
    return resolve("toy", options, host=host_of(family), checkpoint=CHECKPOINT)


def pattern_of(strategy: str, block_size: int = 4) -> AttentionPattern:
    entry = host_of().strategies.entry(strategy)
    make = host_of().load(entry.descriptor.pattern, provenance=entry.provenance)
    pattern: AttentionPattern = make(block_size)
    return pattern


def extent(phase: Phase) -> Extent:
    return Extent(prompt_len=6, phase=phase, final_end=0, end=12)


@pytest.mark.parametrize("alias", ["multi_block_diffusion", "block_diffusion"])
def test_multi_bd_answers_to_its_other_names(alias: str) -> None:
    assert configure(decoding_strategy=alias).decoding.decoding_strategy == "multi_bd"


def test_multi_bd_rows_see_to_the_end_of_their_block_in_prompt_and_answer() -> None:
    pattern = pattern_of("multi_bd")
    assert pattern.block_size == 4
    for phase in Phase:
        assert pattern.key_end(np.arange(10), extent(phase)).tolist() == [4, 4, 4, 4, 8, 8, 8, 8, 12, 12]


def test_d2f_prompt_rows_see_the_prompt_and_the_rest_its_blocks() -> None:
    pattern = pattern_of("d2f")
    assert pattern.key_end(np.arange(10), extent(Phase.PREFILL)).tolist() == [6, 6, 6, 6, 6, 6, 8, 8, 12, 12]
    assert pattern.key_end(np.arange(4, 10), extent(Phase.DECODE)).tolist() == [8, 8, 8, 8, 12, 12]


def test_d2f_turns_prefix_caching_off_and_says_so_only_to_who_asked_for_it() -> None:
    silent = configure(decoding_strategy="d2f")
    assert silent.cache.enable_prefix_caching is False
    assert silent.warnings == ()
    asked = configure(decoding_strategy="d2f", enable_prefix_caching=True)
    assert asked == silent
    [warning] = asked.warnings
    assert "enable_prefix_caching" in warning
    assert "'d2f'" in warning


def test_multi_bd_shares_prefixes_unless_told_otherwise() -> None:
    assert configure(decoding_strategy="multi_bd").cache.enable_prefix_caching is True
    assert configure(decoding_strategy="multi_bd", enable_prefix_caching=False).cache.enable_prefix_caching is False


@pytest.mark.parametrize(
    ("strategy", "needed"),
    [
        ("multi_bd", {Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL}),
        ("d2f", {Capability.MASK_TOKEN, Capability.FULL_PREFIX}),
    ],
)
def test_each_needs_a_mask_token_and_its_visibility(strategy: str, needed: set[str]) -> None:
    assert missing_capabilities(toy(), host_of().strategies.get(strategy)) == needed
    assert configure(toy(*needed), decoding_strategy=strategy).strategy.name == strategy
    for capability in needed:
        with pytest.raises(IncompatibleError, match=capability):
            configure(toy(*needed - {capability}), decoding_strategy=strategy)


EDIT_KEYS = {"max_post_edit_steps": 3, "penalty_lambda": 0.5, "enable_remask": True}


def test_neither_edits_decided_tokens() -> None:
    assert configure(decoding_strategy="d2f").unused == ("edit_threshold", "remask_threshold")
    assert configure(decoding_strategy="multi_bd").unused == ("edit_threshold", "remask_threshold", *EDIT_KEYS)


def test_keys_of_edit_sampling_that_are_given_without_it_are_named_in_one_line() -> None:
    config = configure(decoding_strategy="multi_bd", edit_threshold=0.5, **EDIT_KEYS)
    [warning] = config.warnings
    assert warning.startswith("The strategy 'multi_bd' in sampling_mode='naive' does not use edit_threshold, max_post_")
    assert warning.endswith("edit_steps, penalty_lambda, enable_remask; the values given change nothing.")
    explained = {row.spec.name: row for row in explain(config)}
    assert all(explained[name].unused for name in EDIT_KEYS)
    assert config.strategy_options.penalty_lambda == 0.5


def test_keys_at_their_defaults_and_keys_in_use_are_not_worth_a_word() -> None:
    assert configure(decoding_strategy="multi_bd", penalty_lambda=0.0, enable_remask=False).warnings == ()
    editing = configure(EDITING, decoding_strategy="multi_bd", sampling_mode="edit", **EDIT_KEYS)
    assert editing.warnings == ()
    assert not {row.spec.name for row in explain(editing) if row.unused}.intersection(EDIT_KEYS)


def test_the_keys_that_a_mode_names_exist() -> None:
    config = configure(decoding_strategy="multi_bd")
    assert config.strategy.unread_in("naive") == EDIT_KEYS.keys() <= config.schema().by_name.keys()
    assert config.strategy.unread_in("edit") == set()


def test_edit_mode_brings_its_request_and_reads_all_thresholds_but_one_in_every_process() -> None:
    config = configure(EDITING, decoding_strategy="multi_bd", sampling_mode="edit", penalty_lambda=0.5)
    assert config.strategy.req == "diffulex_multibd.edit:edit_request"
    assert config.unused == ("semi_complete_threshold",)
    assert config.strategy_options.penalty_lambda == 0.5
    assert pickle.loads(pickle.dumps(config)) == config


def test_edit_mode_needs_a_family_that_was_trained_for_it() -> None:
    with pytest.raises(IncompatibleError, match=r"does not provide edit; use sampling_mode='naive'"):
        configure(decoding_strategy="multi_bd", sampling_mode="edit")
    with pytest.raises(ConfigError, match=r"'d2f' has no such mode; .*'multi_bd'"):
        configure(decoding_strategy="d2f", sampling_mode="edit")


@pytest.mark.parametrize("options", [{"penalty_lambda": -1.0}, {"max_post_edit_steps": -1}, {"enable_remask": "maybe"}])
def test_edit_keys_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        configure(EDITING, decoding_strategy="multi_bd", sampling_mode="edit", **options)


def test_the_plugin_imports_no_torch() -> None:
    code = f"import sys; sys.path[:] = {sys.path!r}; import {multibd.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
