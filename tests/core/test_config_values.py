"""A configuration is a frozen value: it survives being taken apart, pickled and given again; it needs no torch."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from typing import Any

import attrs
import pytest
from hypothesis import given, strategies as st

from diffulex_core.config import EngineConfig, structure, unstructure
from diffulex_core.config.convert import choices_of
from diffulex_core.config.schema import KeySpec
from tests.core.config_kit import configure

SCHEMA = configure({"decoding_strategy": "pairs"}).schema()


def values_of(spec: KeySpec) -> st.SearchStrategy[Any]:
    """Values that the key takes by itself."""
    info, kind = spec.info, spec.kind
    special: dict[str, st.SearchStrategy[Any]] = {
        "num_pages": st.just(-1) | st.integers(1, 10_000),
        "max_model_len": st.integers(1, 4096),
        "mask_token_id": st.integers(0, 999),
        "eos_token_ids": st.lists(st.integers(0, 999)),
        "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:1"]),
        "device_ids": st.just([]),
        "attn_impl": st.sampled_from(["auto", "naive", "torch_ref"]),
        "layer_impl": st.sampled_from(["auto", "torch"]),
        "profiler_config.torch_profiler_dir": st.just("traces"),
        "profiler_config.formats": st.lists(st.sampled_from(["trace.json", "trace.json.gz", "summary", "stages"])),
        "profiler_config.activities": st.lists(st.sampled_from(["cpu", "cuda"])),
        "max_num_batched_tokens": st.integers(32 * 64, 100_000),
        "buffer_size": st.integers(1, 64),
        "sampling_mode": st.just("naive"),
        "page_size": st.just(32),
        "sparse.enabled": st.just(False),
        "sparse.pool_kernel": st.integers(0, 50).map(lambda half: 2 * half + 1),
        "sparse.delay_step": st.integers(0, 3),
        "sparse.default_block_len": st.integers(4, 100),
        "pair_order": st.lists(st.sampled_from(["left", "right"])),
    }
    if spec.name in special:
        return special[spec.name]
    if not info.built:
        return st.sampled_from([spec.default, *info.honoured])
    if info.choices or choices_of(kind):
        return st.sampled_from(info.choices or choices_of(kind))
    if kind is bool:
        return st.booleans()
    if kind in (int, int | None):
        whole = st.integers(int(info.minimum or 0), int(info.maximum or 10_000))
        return whole if kind is int else st.none() | whole
    if kind in (float, float | None):
        low = info.minimum if info.above is None else info.above
        number = st.floats(low, info.maximum, exclude_min=info.above is not None, allow_infinity=False)
        return number if kind is float else st.none() | number
    return st.text(min_size=1)


NAMES = {
    *("model", "model_name", "decoding_strategy", "profiler_config.torch_profiler_dir", "use_lora", "lora_path"),
    "moe_gemm_impl",
}
OPTIONS = st.fixed_dictionaries(
    {
        "profiler_config.torch_profiler_dir": st.just("traces"),
        "use_lora": st.booleans(),
        "lora_path": st.text(min_size=1),
    },
    optional={spec.name: values_of(spec) for spec in SCHEMA if spec.name not in NAMES},
)


@given(options=OPTIONS, model=st.text(min_size=1))
def test_a_configuration_survives_taking_apart_json_pickle_and_being_given_again(
    options: dict[str, Any], model: str
) -> None:
    config = configure({**options, "decoding_strategy": "pairs"}, model=model)
    for copy in (structure(unstructure(config)), structure(json.loads(json.dumps(unstructure(config))))):
        assert_same(copy, config)
    assert_same(pickle.loads(pickle.dumps(config)), config)
    again = configure(config.flat(), model=None)
    assert again == config
    assert hash(again) == hash(config)


def assert_same(copy: EngineConfig, config: EngineConfig) -> None:
    """Equal in what equality covers, and in what it does not."""
    assert copy == config
    assert hash(copy) == hash(config)
    assert (dict(copy.origins), copy.warnings, copy.unused) == (dict(config.origins), config.warnings, config.unused)


@pytest.mark.parametrize("strategy", ["blocks", "prefix", "alpha_own"])
def test_every_kind_of_strategy_survives_pickling(strategy: str) -> None:
    config = configure({"decoding_strategy": strategy, "heat": 0.25, "nonsense": 1}, generation_config={"top_k": 5})
    copy = pickle.loads(pickle.dumps(config))
    assert_same(copy, config)
    assert (copy.family, copy.strategy) == (config.family, config.strategy)
    assert copy.sampling_defaults == {"top_k": 5}
    assert (copy.strategy_options is copy.family_options) == (strategy == "alpha_own")


def test_who_set_a_value_makes_no_difference_to_equality_but_the_value_does() -> None:
    assert configure({"max_num_reqs": 128}) == configure()
    assert configure({"max_num_reqs": 127}) != configure()
    assert configure({"heat": 0.1}) != configure()
    assert configure(generation_config={"temperature": 0.5}) != configure()


def test_nothing_of_a_configuration_can_be_changed() -> None:
    config = configure()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.cache.page_size = 4  # type: ignore[misc]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.cache = config.cache  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.origins["page_size"] = config.origins["num_pages"]  # type: ignore[index]


def test_flat_names_every_key_once_with_its_value() -> None:
    config = configure({"block_size": 16, "accept_threshold": 0.25, "heat": 0.75})
    flat = config.flat()
    assert flat.keys() == {spec.name for spec in config.schema()}
    assert (flat["block_size"], flat["accept_threshold"], flat["heat"]) == (16, 0.25, 0.75)


def test_configuring_imports_no_torch() -> None:
    script = """
import sys
from tests.core.config_kit import configure
import diffulex_core.config.describe, diffulex_core.config.load, diffulex_core.cli.config
configure({"block_size": 16, "decoding_strategy": "pairs"})
assert "torch" not in sys.modules, "torch was imported"
assert "transformers" not in sys.modules, "transformers was imported"
"""
    path = [entry for entry in sys.path if entry]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}\n{script}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
