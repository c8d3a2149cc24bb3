"""Every key of the core: its default, its other names, and the values that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from diffulex_core.config import EngineConfig
from diffulex_core.config.checks import check_values
from diffulex_core.config.convert import choices_of
from diffulex_core.config.keys import KeyInfo, Origin
from diffulex_core.config.known_keys import OWNERS, PER_REQUEST, WITHOUT_MEANING
from diffulex_core.config.schema import KeySpec, build_schema, core_sections
from diffulex_core.config.settle import Report, Setting
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from tests.core.config_kit import configure, problems_of

SCHEMA = build_schema(core_sections())
NOT_BUILT = [spec for spec in SCHEMA if not spec.info.built]

DEFAULTS: dict[str, Any] = {
    "model": "",
    "tokenizer_path": None,
    "model_name": "",
    "mask_token_id": None,
    "eos_token_ids": (),
    "dtype": "auto",
    "load_format": "auto",
    "check_weights": False,
    "decoding_strategy": "",
    "sampling_mode": "naive",
    "block_size": 32,
    "buffer_size": 4,
    "add_block_threshold": 0.1,
    "semi_complete_threshold": 0.9,
    "accept_threshold": 0.9,
    "edit_threshold": 0.0,
    "remask_threshold": 0.4,
    "token_stability_threshold": 0.0,
    "auto_max_nfe": False,
    "auto_max_nfe_warmup_steps": 8,
    "auto_max_nfe_tpf_floor": 1.0,
    "max_model_len": 2048,
    "max_num_batched_tokens": 4096,
    "max_logits_tokens": None,
    "max_num_reqs": 128,
    "max_refresh_tokens": None,
    "page_size": 32,
    "num_pages": -1,
    "gpu_memory_utilization": 0.9,
    "enable_prefix_caching": True,
    "kv_cache_layout": "unified",
    "kv_cache_dtype": "auto",
    "cache_policy": "sparse_refresh",
    "sparse.enabled": False,
    "sparse.retention_ratio": 0.5,
    "sparse.delay_step": 1,
    "sparse.default_block_len": 32,
    "sparse.head_select": False,
    "sparse.pool_kernel": 3,
    "sparse.refresh_every": None,
    "sparse.refresh_drift": None,
    "sparse.force_first": False,
    "tensor_parallel_size": 1,
    "data_parallel_size": 1,
    "expert_parallel_size": 1,
    "master_addr": "localhost",
    "master_port": 0,
    "executor": "auto",
    "distributed_backend": "auto",
    "distributed_timeout_seconds": 600,
    "device": "auto",
    "device_ids": (),
    "attn_impl": "auto",
    "enforce_eager": False,
    "enable_full_static_runner": True,
    "enable_prefill_cudagraph": False,
    "prefill_cudagraph_max_len": 0,
    "enable_torch_compile": True,
    "enable_cudagraph_torch_compile": False,
    "torch_compile_mode": "reduce-overhead",
    "enable_vllm_layers": True,
    "enable_vectorized_sampler": True,
    "enable_vectorized_sampler_compile": False,
    "moe_gemm_impl": "auto",
    "layer_impl": "auto",
    "moe_dispatcher_backend": "standard",
    "deepep_mode": "auto",
    "deepep_num_max_dispatch_tokens_per_rank": 256,
    "skip_warmup": False,
    "profiler_config.profiler": None,
    "profiler_config.torch_profiler_dir": "",
    "profiler_config.formats": ("trace.json", "summary", "stages"),
    "profiler_config.activities": (),
    "profiler_config.record_shapes": False,
    "profiler_config.profile_memory": False,
    "profiler_config.with_stack": False,
    "profiler_config.with_flops": False,
    "profiler_config.with_modules": False,
    "profiler_config.use_cuda": True,
    "profiler_config.delay_iterations": 0,
    "profiler_config.warmup_iterations": 0,
    "profiler_config.max_iterations": 0,
    "profiler_config.repeat": 1,
    "profiler_config.run_id": None,
    "profiler_config.keep_steps": 256,
    "trace_path": "",
    "save_trace": False,
    "use_lora": False,
    "lora_path": "",
    "pre_merge_lora": False,
}

ALIASES = {
    "model_path": "model",
    "eos_token_id": "eos_token_ids",
    "eos": "eos_token_ids",
    "diffusion_block_size": "block_size",
    "max_logprobs": "max_logits_tokens",
    "max_num_seqs": "max_num_reqs",
    "kvcache_block_size": "page_size",
    "profiler": "profiler_config.profiler",
    "torch_profiler_dir": "profiler_config.torch_profiler_dir",
    "profiler_record_shapes": "profiler_config.record_shapes",
    "profiler_memory": "profiler_config.profile_memory",
    "profiler_with_stack": "profiler_config.with_stack",
    "profiler_with_modules": "profiler_config.with_modules",
    "profiler_use_cuda": "profiler_config.use_cuda",
    "profiler_delay_iterations": "profiler_config.delay_iterations",
    "profiler_max_iterations": "profiler_config.max_iterations",
    "profiler_run_id": "profiler_config.run_id",
    "profiler_formats": "profiler_config.formats",
    "profiler_activities": "profiler_config.activities",
    "profiler_with_flops": "profiler_config.with_flops",
    "profiler_warmup_iterations": "profiler_config.warmup_iterations",
    "profiler_repeat": "profiler_config.repeat",
    "profiler_keep_steps": "profiler_config.keep_steps",
    "profiler_config.schedule.wait": "profiler_config.delay_iterations",
    "profiler_config.schedule.warmup": "profiler_config.warmup_iterations",
    "profiler_config.schedule.active": "profiler_config.max_iterations",
    "profiler_config.schedule.repeat": "profiler_config.repeat",
    "decoding_thresholds.add_block_threshold": "add_block_threshold",
    "decoding_thresholds.semi_complete_threshold": "semi_complete_threshold",
    "decoding_thresholds.accept_threshold": "accept_threshold",
    "decoding_thresholds.edit_threshold": "edit_threshold",
    "decoding_thresholds.remask_threshold": "remask_threshold",
    "decoding_thresholds.token_stability_threshold": "token_stability_threshold",
}

REFUSED: dict[str, list[object]] = {
    "mask_token_id": [-1, "7", True, 1000],
    "eos_token_ids": [[-1], ["x"], [1000], {"a": 1}],
    "dtype": ["fp8", 16],
    "load_format": ["pt", "gguf", True],
    "check_weights": ["maybe", 2],
    "sampling_mode": ["fast", 1],
    "block_size": [0, -8, 3, 64, 8.0, True],
    "buffer_size": [0, -1, 1.5],
    "add_block_threshold": [-0.1, 1.1, float("nan"), "high"],
    "semi_complete_threshold": [-0.1, 1.1, float("nan")],
    "accept_threshold": [-0.1, 1.1, float("nan"), True],
    "edit_threshold": [-0.1, 1.1, float("nan")],
    "remask_threshold": [-0.1, 1.1, float("nan")],
    "token_stability_threshold": [-0.1, 1.1, float("nan")],
    "auto_max_nfe": ["yes", 1],
    "auto_max_nfe_warmup_steps": [0, 2.5],
    "auto_max_nfe_tpf_floor": [0, -1],
    "max_model_len": [0, -5, 4097],
    "max_num_batched_tokens": [0, 95],
    "max_logits_tokens": [1, 2.5, "all"],
    "max_num_reqs": [0, "many"],
    "max_refresh_tokens": [0, 1.5, "all"],
    "page_size": [0, 12, 64, 16],
    "num_pages": [0, -2],
    "gpu_memory_utilization": [0, -0.5, 1.01, float("nan")],
    "enable_prefix_caching": ["on", 1],
    "kv_cache_layout": ["split"],
    "kv_cache_dtype": ["fp8"],
    "cache_policy": [3],
    "sparse.enabled": ["on", 1],
    "sparse.retention_ratio": [0, -0.5, 1.01, float("nan")],
    "sparse.delay_step": [-1, 32, 0.5],
    "sparse.default_block_len": [0, 2.5],
    "sparse.head_select": ["on", 1],
    "sparse.pool_kernel": [0, -1, 2, 4],
    "sparse.refresh_every": [0, 1.5],
    "sparse.refresh_drift": [0, 1.01, float("nan")],
    "sparse.force_first": ["on", 1],
    "tensor_parallel_size": [0, 9],
    "data_parallel_size": [0, 1025],
    "expert_parallel_size": [0, 32769],
    "master_port": [-1, 65536, "auto"],
    "distributed_backend": ["mpi"],
    "distributed_timeout_seconds": [0, 1.5],
    "device": ["gpu", "cuda:x", "cuda:", 0],
    "device_ids": [[-1], [0, 0], "all"],
    "attn_impl": ["fastest", 3],
    "enforce_eager": [None.__class__, 0],
    "enable_full_static_runner": ["no"],
    "enable_prefill_cudagraph": ["no"],
    "prefill_cudagraph_max_len": [-1],
    "enable_torch_compile": ["no"],
    "enable_cudagraph_torch_compile": ["no"],
    "enable_vllm_layers": ["no"],
    "enable_vectorized_sampler": ["no"],
    "enable_vectorized_sampler_compile": ["no", True],
    "moe_gemm_impl": ["cutlass", "vllm", "vllm_modular"],
    "layer_impl": ["cutlass"],
    "moe_dispatcher_backend": ["mpi"],
    "deepep_mode": ["fast"],
    "deepep_num_max_dispatch_tokens_per_rank": [0],
    "skip_warmup": ["no"],
    "profiler_config.profiler": ["nsys"],
    "profiler_config.record_shapes": ["no"],
    "profiler_config.profile_memory": ["no"],
    "profiler_config.with_stack": ["no"],
    "profiler_config.with_modules": ["no"],
    "profiler_config.use_cuda": ["no"],
    "profiler_config.delay_iterations": [-1],
    "profiler_config.max_iterations": [-1],
    "profiler_config.warmup_iterations": [-1],
    "profiler_config.repeat": [-1],
    "profiler_config.keep_steps": [0, 1_000_001],
    "profiler_config.formats": [["perfetto"]],
    "profiler_config.activities": [["xpu"]],
    "profiler_config.with_flops": ["no"],
    "save_trace": ["no"],
    "use_lora": ["no"],
    "pre_merge_lora": ["no"],
    "model": [b"ckpt"],
    "tokenizer_path": [3],
    "model_name": [3, "gamma"],
    "decoding_strategy": [3.5, "gamma"],
    "executor": [3],
    "master_addr": [3],
    "torch_compile_mode": [3, "fast"],
    "profiler_config.torch_profiler_dir": [3],
    "profiler_config.run_id": [3],
    "trace_path": [3],
    "lora_path": [3],
}

ACCEPTED: dict[str, list[object]] = {
    "block_size": [4, 8, 16, 32],
    "buffer_size": [1, 8],
    "accept_threshold": [0, 1, 0.5],
    "gpu_memory_utilization": [1, 0.01],
    "num_pages": [-1, 1],
    "max_model_len": [1, 4096],
    "max_num_batched_tokens": [96],
    "device": ["auto", "cpu", "cuda", "cuda:3"],
    "dtype": ["auto", "float32", "bfloat16", "float16"],
    "load_format": ["auto", "safetensors", "dummy"],
    "check_weights": [True, False],
    "kv_cache_dtype": ["auto", "float32", "bfloat16", "float16"],
    "enforce_eager": [True, False],
    "mask_token_id": [0, 999, None],
    "auto_max_nfe_tpf_floor": [0.25],
}


def value_of(config: EngineConfig, name: str) -> object:
    return config.flat()[name]


def test_the_defaults_are_the_published_ones() -> None:
    assert {spec.name: spec.default for spec in SCHEMA} == DEFAULTS


def test_the_aliases_are_the_published_ones() -> None:
    assert {other: spec.name for spec in SCHEMA for other in spec.other_names} == ALIASES


@pytest.mark.parametrize("spec", SCHEMA.specs, ids=lambda spec: spec.name)
def test_every_key_has_a_sentence_of_help(spec: KeySpec) -> None:
    assert spec.info.help.endswith(".")


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_an_alias_sets_what_the_public_name_sets(alias: str, name: str) -> None:
    spec = SCHEMA.by_name[name]
    other: object = {int: 8, float: 0.25, bool: not spec.default, str: "text"}.get(type(spec.default), "torch")
    other = {
        "eos_token_ids": [3, 5],
        "max_logits_tokens": 64,
        "profiler_config.formats": ["stages"],
        "profiler_config.activities": ["cpu"],
    }.get(name, other)
    base: dict[str, object] = {"torch_profiler_dir": "traces"} if name == "profiler_config.profiler" else {}
    base |= {"block_size": 4} if name == "page_size" else {}
    model = None if name == "model" else "ckpt"
    by_alias, by_name = (configure({**base, given: other}, model=model) for given in (alias, name))
    assert by_alias == by_name
    assert value_of(by_alias, name) != spec.default
    assert by_alias.origins[name].by_user


def test_giving_a_key_twice_under_two_names_must_agree() -> None:
    assert configure({"max_num_seqs": 4, "max_num_reqs": 4}).schedule.max_num_reqs == 4
    [problem] = problems_of({"max_num_seqs": 4, "max_num_reqs": 5})
    assert "max_num_reqs" in problem
    assert "4" in problem
    assert "5" in problem


def test_every_key_has_values_that_it_refuses() -> None:
    assert REFUSED.keys() == DEFAULTS.keys()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_a_bad_value_is_refused_with_key_value_source_and_owner(name: str, value: object) -> None:
    problems = problems_of({name: value}, model=None if name == "model" else "ckpt")
    [problem] = [text for text in problems if text.startswith(f"{name} is ")]
    assert "given by the caller" in problem
    if name not in ("model_name", "decoding_strategy") or not isinstance(value, str):
        assert f"core, section {SCHEMA.by_name[name].section}" in problem


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ACCEPTED.items() for value in values])
def test_values_on_the_bounds_are_accepted(name: str, value: object) -> None:
    config = configure({name: value})
    assert value_of(config, name) == (7 if name == "mask_token_id" and value is None else value)


@pytest.mark.parametrize("spec", NOT_BUILT, ids=lambda spec: spec.name)
def test_a_key_without_machinery_takes_its_default_only(spec: KeySpec) -> None:
    others: dict[type, tuple[object, ...]] = {bool: (True, False), int: (0, 1, 2, 29500), str: ("eager",)}
    usable = {spec.default, *spec.info.honoured}
    for value in (spec.default, *(choices_of(spec.kind) or others[type(spec.default)])):
        assert (not problems_of({spec.name: value})) == (value in usable), value


@pytest.mark.parametrize(
    ("name", "value", "usable"),
    [
        ("expert_parallel_size", 2, "1"),
        ("deepep_mode", "normal", "'auto'"),
        ("moe_dispatcher_backend", "naive", "'standard'"),
    ],
)
def test_the_refusal_of_a_key_without_machinery_names_the_value_to_use(name: str, value: object, usable: str) -> None:
    [problem] = problems_of({name: value})
    assert problem.endswith(f"this version cannot do that yet; use {usable}.")


@pytest.mark.parametrize(
    ("name", "value", "reason", "instead"),
    [
        ("kv_cache_layout", "distinct", "every attention backend", "'unified'"),
        ("enable_vectorized_sampler_compile", True, "kernels of layer_impl", "False"),
    ],
)
def test_what_is_never_built_is_refused_with_the_reason(name: str, value: object, reason: str, instead: str) -> None:
    [problem] = problems_of({name: value})
    assert reason in problem
    assert problem.endswith(f"; use {instead}.")


def test_one_sampler_serves_both_settings_of_the_vectorized_one() -> None:
    for value in (True, False):
        assert not configure({"enable_vectorized_sampler": value}).warnings


def test_asking_for_machinery_that_is_missing_by_giving_its_default_warns() -> None:
    def warnings(value: bool, origin: Origin) -> list[str]:
        info = KeyInfo(help="Turns a thing on.", built=False, honoured=(False,))
        spec = KeySpec(
            name="thing", section="runtime", owner="core", path=("thing",), kind=bool, default=True, info=info
        )
        report = Report()
        check_values({"thing": Setting(spec=spec, value=value, origin=origin)}, report)
        assert not report.problems
        return report.warnings

    [warning] = warnings(True, Origin(source="user"))
    assert "thing is True" in warning
    assert not warnings(True, Origin())
    assert not warnings(False, Origin(source="user"))
    assert not configure({"expert_parallel_size": 1}).warnings


@pytest.mark.parametrize(
    ("given", "asked", "against"),
    [
        ({"enable_prefill_cudagraph": True}, "enable_prefill_cudagraph", "prefill_cudagraph_max_len is 0"),
        ({"prefill_cudagraph_max_len": 64}, "prefill_cudagraph_max_len", "enable_prefill_cudagraph is off"),
        (
            {"enable_cudagraph_torch_compile": True, "enable_torch_compile": False},
            "enable_cudagraph_torch_compile",
            "enable_torch_compile is off",
        ),
        (
            {"enable_cudagraph_torch_compile": True, "enable_full_static_runner": False},
            "enable_cudagraph_torch_compile",
            "enable_full_static_runner is off",
        ),
        (
            {"enable_cudagraph_torch_compile": True, "enforce_eager": True},
            "enable_cudagraph_torch_compile",
            "enforce_eager is on",
        ),
    ],
)
def test_what_another_key_stands_in_the_way_of_warns(given: dict[str, object], asked: str, against: str) -> None:
    [warning] = configure(given).warnings
    assert warning.startswith(f"{asked} (given by the caller) has no effect while {against}; ")


def test_static_steps_that_nothing_stands_in_the_way_of_do_not_warn() -> None:
    assert not configure({"enable_prefill_cudagraph": True, "prefill_cudagraph_max_len": 64}).warnings
    assert not configure({"enable_cudagraph_torch_compile": True}).warnings


@pytest.mark.parametrize("name", sorted(WITHOUT_MEANING))
@pytest.mark.parametrize("strict", [False, True])
def test_a_key_without_meaning_changes_nothing_and_warns_once(name: str, strict: bool) -> None:
    config = configure({name: 1}, strict=strict)
    assert config == configure()
    [warning] = config.warnings
    assert warning.startswith(f"{name} (given by the caller) has no meaning here")


@pytest.mark.parametrize(("name", "package"), OWNERS.items())
def test_a_key_of_a_package_that_is_not_in_use_is_refused_with_the_packages_name(name: str, package: str) -> None:
    [problem] = problems_of({name: 1})
    assert name in problem
    assert package in problem


def test_a_per_request_setting_is_sent_to_sampling_params() -> None:
    assert {field.name for field in attrs.fields(SamplingParams)} - {"thresholds", "sparse"} == PER_REQUEST
    [warning] = configure({"temperature": 0}).warnings
    assert "SamplingParams(temperature=...)" in warning


def test_thresholds_may_be_flat_a_table_or_an_object() -> None:
    flat = configure({"accept_threshold": 0.5, "add_block_threshold": 0})
    assert flat == configure({"decoding_thresholds": {"accept_threshold": 0.5, "add_block_threshold": 0}})
    whole = DecodingThresholds(accept_threshold=0.5, add_block_threshold=0.0)
    assert flat == configure({"decoding_thresholds": whole})
    assert flat.decoding.decoding_thresholds == whole


def test_a_flat_threshold_overrides_its_entry_in_the_table_given_beside_it() -> None:
    config = configure(
        {"accept_threshold": 0.5, "decoding_thresholds": {"accept_threshold": 0.7, "edit_threshold": 0.1}}
    )
    assert config.decoding.decoding_thresholds == DecodingThresholds(accept_threshold=0.5, edit_threshold=0.1)


def test_a_table_without_entries_or_null_sets_nothing() -> None:
    assert configure({"decoding_thresholds": {}, "profiler_config": None}) == configure()


@pytest.mark.parametrize("table", [0.5, "high", [0.5]])
def test_something_else_in_place_of_a_table_is_refused(table: object) -> None:
    [problem] = problems_of({"decoding_thresholds": table})
    assert "give a table with keys of add_block_threshold" in problem


def test_a_misspelt_entry_of_a_table_is_refused_even_where_keywords_are_lenient() -> None:
    [problem] = problems_of({"decoding_thresholds": {"acept_threshold": 0.5}})
    assert "Did you mean decoding_thresholds.accept_threshold?" in problem


def test_an_entry_of_a_table_that_resembles_none_is_answered_with_those_that_exist() -> None:
    [problem] = problems_of({"decoding_thresholds": {"edit": 0.5}})
    assert "decoding_thresholds has add_block_threshold, semi_complete_threshold, accept_threshold, edit_" in problem


def test_null_means_not_given_where_it_is_no_value() -> None:
    config = configure({"page_size": None, "mask_token_id": None})
    assert config == configure()
    assert not config.origins["page_size"].by_user


def test_paths_may_be_path_objects() -> None:
    assert configure({"trace_path": Path("a/b.jsonl")}).runtime.trace_path == "a/b.jsonl"


def test_a_page_holds_whole_blocks() -> None:
    [problem] = problems_of({"block_size": 32, "page_size": 16})
    assert "use a page_size of at least 32, or a block_size of at most 16" in problem
    assert configure({"block_size": 4, "page_size": 16}).cache.page_size == 16


@pytest.mark.parametrize(("buffer_size", "needed"), [(1, 64), (2, 64), (5, 160)])
def test_the_token_budget_holds_one_requests_running_blocks(buffer_size: int, needed: int) -> None:
    given = {"block_size": 32, "buffer_size": buffer_size}
    assert not problems_of({**given, "max_num_batched_tokens": needed})
    [problem] = problems_of({**given, "max_num_batched_tokens": needed - 1})
    assert f"use at least {needed}" in problem


def test_the_torch_profiler_needs_a_directory() -> None:
    [problem] = problems_of({"profiler_config": {"profiler": "torch"}})
    assert "profiler_config.torch_profiler_dir" in problem
    config = configure({"profiler": "torch", "torch_profiler_dir": "traces"})
    assert config.runtime.profiler_config.torch_profiler_dir == "traces"


def test_an_adapter_needs_a_directory() -> None:
    assert any(problem.startswith("lora_path is ''") for problem in problems_of({"use_lora": True}))
    config = configure({"use_lora": True, "lora_path": "adapter"})
    assert config.lora.use_lora
    assert config.lora.lora_path == "adapter"
    assert not config.lora.pre_merge_lora


def test_an_adapter_that_nothing_turns_on_is_a_problem_and_one_that_is_turned_off_is_named() -> None:
    [problem] = problems_of({"lora_path": "adapter"})
    assert problem.startswith("lora_path is 'adapter'")
    assert "set use_lora" in problem
    config = configure({"lora_path": "adapter", "use_lora": False, "pre_merge_lora": True})
    for name in ("lora_path", "pre_merge_lora"):
        assert [warning for warning in config.warnings if warning.startswith(f"{name} ")]
    assert any(warning.startswith("pre_merge_lora ") for warning in configure({"pre_merge_lora": True}).warnings)
    assert not configure({"use_lora": False}).warnings


def test_the_first_device_id_becomes_the_device() -> None:
    config = configure({"device_ids": [2, 3]})
    assert config.parallel.device == "cuda:2"
    assert config.origins["device"] == config.origins["device_ids"]
    [problem] = problems_of({"device_ids": [1], "device": "cpu"})
    assert "device is 'cpu'" in problem


def test_estimates_for_a_cap_that_is_off_warn() -> None:
    [warning] = configure({"auto_max_nfe_warmup_steps": 4}).warnings
    assert "no effect while auto_max_nfe is off" in warning
    assert not configure({"auto_max_nfe_warmup_steps": 4, "auto_max_nfe": True}).warnings


def test_backend_aliases_are_resolved() -> None:
    assert configure({"attn_impl": "naive"}).attention.attn_impl == "torch_ref"
