"""What an adapter adds: `scale · B A` in every layer that its rules name, whatever the ranks, names and patterns."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from diffulex_core.layers.linear import Multiplies
from diffulex_core.protocols import DiffusionModel
from diffulex_core.weights.lora import config as keys
from diffulex_core.weights.lora.apply import LowRankProduct
from diffulex_core.weights.lora.config import parse_adapter_config
from diffulex_core.weights.lora.targets import TargetRule
from tests.core.checkpoints import Checkpoint, write_weights
from tests.core.forward import Rows, all_visible, pages, run_model
from tests.core.lora_families import EXPERTS_FAMILY, LLADA_CASE, PACKED_CASE, QWEN2_CASE, write_experts
from tests.core.lora_kit import (
    Matrices,
    adapter_config,
    adapter_tensors,
    linear_shapes,
    logits,
    random_matrices,
    write_adapter,
)

FAMILIES = {
    "llada": (LLADA_CASE.family, LLADA_CASE.write),
    "qwen2": (QWEN2_CASE.family, QWEN2_CASE.write),
    "packed": (PACKED_CASE.family, PACKED_CASE.write),
    "experts": (EXPERTS_FAMILY, write_experts),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Checkpoint]:
    return {name: write(tmp_path_factory.mktemp(name)) for name, (_, write) in FAMILIES.items()}


def tensors_of(model: DiffusionModel) -> dict[str, Tensor]:
    assert isinstance(model, nn.Module)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def effective(checkpoint: Checkpoint, folder: Path, matrices: Matrices, scales: Mapping[str, float]) -> Checkpoint:
    """A checkpoint whose weights hold the adapter already, summed in fp64."""
    tensors = dict(checkpoint.tensors)
    for path, (a, b) in matrices.items():
        name = f"{path}.weight"
        tensors[name] = (tensors[name].double() + scales[path] * (b.double() @ a.double())).float()
    folder.mkdir()
    write_weights(folder, tensors)
    return attrs.evolve(checkpoint, folder=folder, tensors=tensors)


ADAPTERS = st.fixed_dictionaries({
    "family": st.sampled_from(sorted(FAMILIES)),
    "chosen": st.randoms(use_true_random=False),
    "share": st.floats(0.05, 1),
    "r": st.integers(1, 40),
    "lora_alpha": st.floats(0.25, 64) | st.integers(1, 64),
    "use_rslora": st.booleans(),
    "other_rank": st.none() | st.integers(1, 9),
    "other_alpha": st.none() | st.floats(-8, 64),
    "prefix": st.sampled_from(["base_model.model.", ""]),
    "infix": st.sampled_from(["", ".default"]),
})  # fmt: skip


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=ADAPTERS)
def test_weights_with_the_adapter_are_those_of_a_checkpoint_that_holds_it_already(
    bases: Mapping[str, Checkpoint], drawn: Mapping[str, Any]
) -> None:
    family, _ = FAMILIES[drawn["family"]]
    base = bases[drawn["family"]]
    shapes = {path: shape for path, shape in linear_shapes(base).items() if path[-8:] != "mlp.gate"}
    paths = sorted(path for path in shapes if drawn["chosen"].random() < drawn["share"]) or [min(shapes)]
    special = paths[len(paths) // 2]
    ranks = dict.fromkeys(paths, drawn["r"])
    alphas = dict.fromkeys(paths, float(drawn["lora_alpha"]))
    if drawn["other_rank"] is not None:
        ranks[special] = drawn["other_rank"]
    if drawn["other_alpha"] is not None:
        alphas[special] = drawn["other_alpha"]
    scales = {path: alphas[path] / (math.sqrt(ranks[path]) if drawn["use_rslora"] else ranks[path]) for path in paths}
    matrices = random_matrices({path: shapes[path] for path in paths}, ranks)
    with TemporaryDirectory() as place:
        adapter = write_adapter(
            Path(place) / "adapter",
            adapter_tensors(matrices, prefix=drawn["prefix"], infix=drawn["infix"]),
            target_modules=paths,
            r=drawn["r"],
            lora_alpha=drawn["lora_alpha"],
            use_rslora=drawn["use_rslora"],
            rank_pattern={special: ranks[special]},
            alpha_pattern={special: alphas[special]},
        )
        expected = family.load(effective(base, Path(place) / "effective", matrices, scales))
        merged = family.load(base)
        assert set(family.adapt(merged, base, adapter, merge=True).layers) == set(paths)
        for name, tensor in tensors_of(merged).items():
            torch.testing.assert_close(tensor, tensors_of(expected)[name], atol=1e-4, rtol=1e-5)
        if not any("experts" in path for path in paths):
            beside = family.load(base)
            before = tensors_of(beside)
            family.adapt(beside, base, adapter, merge=False)
            assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(beside).items())
            wanted = logits(expected)
            scale = wanted.abs().max()
            assert (logits(beside) - wanted).abs().max() < 2e-4 * scale
            assert (logits(merged) - wanted).abs().max() < 2e-4 * scale


def test_merging_rounds_once_to_the_weights_dtype(tmp_path: Path, bases: Mapping[str, Checkpoint]) -> None:
    base, path = bases["llada"], "model.transformer.blocks.0.attn_out"
    matrices = random_matrices({path: (32, 32)}, 5)
    adapter = write_adapter(tmp_path, adapter_tensors(matrices), r=5, lora_alpha=3, target_modules=["0.attn_out"])
    model = LLADA_CASE.family.adapted(base, adapter, merge=True, dtype=torch.bfloat16)
    a, b = (matrix.double() for matrix in matrices[path])
    exact = base.tensors[f"{path}.weight"].bfloat16().double() + 3 / 5 * (b @ a)
    found = tensors_of(model)["layers.0.attn.out.weight"]
    assert found.dtype == torch.bfloat16
    # Half a unit in the last of bfloat16's 8 bits, and the error of summing in fp32.
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()
    assert (found == exact.bfloat16()).double().mean() > 0.999


def test_layers_that_no_rule_names_multiply_as_they_did(tmp_path: Path, bases: Mapping[str, Checkpoint]) -> None:
    matrices = random_matrices({"model.transformer.blocks.1.k_proj": (16, 32)}, 4)
    adapter = write_adapter(tmp_path, adapter_tensors(matrices), target_modules=["1.k_proj"])
    model = LLADA_CASE.family.adapted(bases["llada"], adapter, merge=False)
    assert isinstance(model, nn.Module)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Multiplies)}
    assert {name for name, layer in layers.items() if layer.multiply is not functional.linear} == {"layers.1.attn.qkv"}
    product = layers["layers.1.attn.qkv"].multiply
    assert isinstance(product, LowRankProduct)
    assert (product.down.shape, product.up.shape) == ((4, 32), (64, 4))


def test_the_parts_of_a_packed_layer_share_two_products(tmp_path: Path, bases: Mapping[str, Checkpoint]) -> None:
    shapes = {f"model.transformer.blocks.0.{part}_proj": (32 if part == "q" else 16, 32) for part in "qkv"}
    ranks = dict(zip(shapes, (3, 1, 6), strict=True))
    matrices = random_matrices(shapes, ranks)
    adapter = write_adapter(
        tmp_path, adapter_tensors(matrices), target_modules=list(shapes), rank_pattern=ranks, alpha_pattern=ranks
    )
    model = LLADA_CASE.family.adapted(bases["llada"], adapter, merge=False)
    assert isinstance(model, nn.Module)
    layer = model.get_submodule("layers.0.attn.qkv")
    assert isinstance(layer, Multiplies)
    assert isinstance(layer.multiply, LowRankProduct)
    assert layer.multiply.down.shape == (10, 32)
    x = torch.randn(8, 32)
    parts = [x @ a.T @ b.T for a, b in matrices.values()]
    assert torch.allclose(layer(x) - functional.linear(x, layer.weight), torch.cat(parts, -1), atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 16, 33])
def test_a_rows_bits_do_not_depend_on_its_batch(tmp_path: Path, bases: Mapping[str, Checkpoint], rank: int) -> None:
    base = bases["llada"]
    shapes = {path: shape for path, shape in linear_shapes(base).items() if path != "model.transformer.ff_out"}
    matrices = random_matrices(shapes, rank)
    adapter = write_adapter(tmp_path, adapter_tensors(matrices), r=rank, target_modules="all-linear")
    model = LLADA_CASE.family.adapted(base, adapter, merge=False)
    sequences = [
        Rows(
            tokens=[(7 * place + 3 * which) % 90 for place in range(length)],
            key_end=all_visible(length),
            table=[5 * which + page for page in range(5)],
        )
        for which, length in enumerate((1, 3, 8, 13, 17))
    ]
    together = run_model(model, sequences, pages(model.kv_geometry, 25, 4))
    for rows, expected in zip(sequences, together, strict=True):
        (alone,) = run_model(model, [rows], pages(model.kv_geometry, 25, 4))
        assert torch.equal(alone, expected)
    backwards = run_model(model, sequences[::-1], pages(model.kv_geometry, 25, 4))
    assert all(torch.equal(a, b) for a, b in zip(backwards[::-1], together, strict=True))


def test_several_files_with_an_index_are_read(tmp_path: Path, bases: Mapping[str, Checkpoint]) -> None:
    base = bases["qwen2"]
    shapes = {path: shape for path, shape in linear_shapes(base).items() if path.endswith(("q_proj", "up_proj"))}
    tensors = adapter_tensors(random_matrices(shapes, 4))
    single = write_adapter(tmp_path / "single", tensors, target_modules=["q_proj", "up_proj"])
    several = write_adapter(tmp_path / "several", tensors, target_modules=["q_proj", "up_proj"])
    (several / "adapter_model.safetensors").unlink()
    weight_map = {}
    for place, name in enumerate(tensors):
        weight_map[name] = f"adapter_model-{place % 3:05d}.safetensors"
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name, holder in weight_map.items() if holder == file}, several / file)
    (several / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    family = QWEN2_CASE.family
    first, second = (tensors_of(family.adapted(base, adapter, merge=True)) for adapter in (single, several))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("targets", [None, []], ids=["null", "empty"])
def test_without_target_modules_the_tensors_say_which_layers_are_meant(
    tmp_path: Path, bases: Mapping[str, Checkpoint], targets: list[str] | None
) -> None:
    matrices = random_matrices({"model.layers.1.mlp.down_proj": (32, 48)}, 4)
    adapter = write_adapter(tmp_path, adapter_tensors(matrices), target_modules=targets)
    family = QWEN2_CASE.family
    report = family.adapt(family.load(bases["qwen2"]), bases["qwen2"], adapter, merge=True)
    assert report.layers == ("model.layers.1.mlp.down_proj",)


def test_an_adapter_may_name_the_parts_of_what_the_checkpoint_stores_stacked(
    tmp_path: Path, bases: Mapping[str, Checkpoint]
) -> None:
    # The family reads both layouts, and the adapter was trained over the other one.
    path = "model.layers.1.self_attn.k_proj"
    matrices = random_matrices({path: (16, 32)}, 4)
    adapter = write_adapter(tmp_path, adapter_tensors(matrices), target_modules=["k_proj"], r=4, lora_alpha=4)
    base, family = bases["packed"], PACKED_CASE.family
    found = tensors_of(family.adapted(base, adapter, merge=True))["layers.1.attn.qkv.weight"]
    expected = base.tensors["model.layers.1.attention.query_key_value.weight"].clone()
    expected[32:48] += matrices[path][1] @ matrices[path][0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_copy_of_the_base_weight_is_accepted_if_it_is_one(tmp_path: Path, bases: Mapping[str, Checkpoint]) -> None:
    # peft stores it along with the adapter for layers called lm_head or embed_tokens.
    base, family = bases["qwen2"], QWEN2_CASE.family
    tensors = adapter_tensors(random_matrices({"lm_head": (97, 32)}, 4))
    tensors["base_model.model.lm_head.base_layer.weight"] = base.tensors["lm_head.weight"]
    adapter = write_adapter(tmp_path, tensors, target_modules=["lm_head"])
    assert family.adapt(family.load(base), base, adapter, merge=False).layers == ("lm_head",)


@pytest.mark.parametrize(
    ("init", "more"),
    [(True, {}), (False, {}), (None, {}), ("gaussian", {}), ("eva", {"eva_config": {"rho": 2.0}}), ("orthogonal", {})],
)
def test_how_training_began_and_went_does_not_matter(init: object, more: Mapping[str, Any]) -> None:
    content = adapter_config(init_lora_weights=init, lora_dropout=0.5, task_type="CAUSAL_LM", **more)
    config, problems = parse_adapter_config(content)
    assert config is not None
    assert problems == []


PATHS = [
    f"model.layers.{layer}.{kind}"
    for layer in (0, 1, 2, 11)
    for kind in ("self_attn.q_proj", "self_attn.out.q_proj", "mlp.up_proj", "mlp.experts.1.up_proj", "mlp.proj")
] + ["lm_head", "model.transformer.blocks.1.ff_out", "model.transformer.ff_out", "q_proj"]
NAMES = st.sampled_from(["q_proj", "up_proj", "proj", "ff_out", "1.ff_out", "mlp.up_proj", "lm_head", *PATHS[:3]])
EXPRESSIONS = st.sampled_from([r".*\.q_proj", r".*(up|q)_proj", r"model\.layers\.1.*", r"lm_head|.*ff_out"])
PATTERNS = st.sampled_from(["layers", "blocks", "experts", "h", r"\w+"])


@settings(deadline=None, max_examples=300)
@example(modules=["up_proj"], exclude=None, layers=[1], patterns=None)
@example(modules=["up_proj"], exclude=None, layers=[1], patterns=["experts"])
@given(
    modules=st.lists(NAMES, min_size=1) | EXPRESSIONS,
    exclude=st.none() | st.lists(NAMES) | EXPRESSIONS,
    layers=st.none() | st.integers(0, 3) | st.lists(st.integers(0, 12)),
    patterns=st.none() | st.lists(PATTERNS) | PATTERNS,
)
def test_the_targets_are_those_that_peft_would_choose(
    modules: list[str] | str,
    exclude: list[str] | str | None,
    layers: int | list[int] | None,
    patterns: list[str] | str | None,
) -> None:
    given_keys = {
        "target_modules": modules, "exclude_modules": exclude,
        "layers_to_transform": layers, "layers_pattern": patterns,
    }  # fmt: skip
    if isinstance(modules, str) and (layers is not None or patterns is not None):
        given_keys |= {"layers_to_transform": None, "layers_pattern": None}  # peft refuses them beside an expression
    if layers is None:
        given_keys["layers_pattern"] = None
    theirs = LoraConfig(**given_keys)
    config, problems = parse_adapter_config(adapter_config(**given_keys))
    assert config is not None
    assert problems == []
    wanted = {path for path in PATHS if check_target_module_exists(theirs, path) is True or _matched(theirs, path)}
    assert config.targets.select(PATHS, linear=(), held=()).paths == wanted


def _matched(config: LoraConfig, path: str) -> bool:
    found = check_target_module_exists(config, path)
    return bool(found) and type(found).__name__ != "_ExcludedModule"


@settings(deadline=None)
@given(
    rules=st.dictionaries(
        NAMES | EXPRESSIONS | st.sampled_from([r"layers\.\d+\.mlp", r"^model.*", "_proj"]),
        st.integers(1, 64),
        max_size=4,
    )
)
def test_patterns_of_rank_and_alpha_apply_where_pefts_do(rules: dict[str, int]) -> None:
    config, _ = parse_adapter_config(adapter_config(r=7, lora_alpha=5, rank_pattern=rules, alpha_pattern=rules))
    assert config is not None
    for path in PATHS:
        key = get_pattern_key(rules.keys(), path)
        rank, alpha = rules.get(key, 7), rules.get(key, 5)
        assert config.rank_of(path) == rank
        assert config.scale_of(path) == alpha / rank


def test_the_documentation_says_of_every_key_what_becomes_of_it() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lora.md").read_text()
    rows = {
        name: set(re.findall(r"`(\w+)`", cells)) for name, cells in re.findall(r"^\| (\w[^|]+) \| (.*)", page, re.M)
    }
    assert rows["honoured"] == (keys._HONOURED - {"bias", "init_lora_weights"}) | {"LORA"}
    assert rows["refused when set"] >= keys._REFUSED.keys() | {"bias", "pissa"}
    assert rows["without effect on answers"] <= keys._WITHOUT_EFFECT


def test_a_lone_name_in_place_of_a_list_is_taken_as_one() -> None:
    chosen = TargetRule(modules="up_proj").select(PATHS, linear=(), held=())
    assert chosen.paths == {path for path in PATHS if path.endswith(".up_proj")}
    assert chosen.problems == ()
