"""An adapter that does not fit as a whole is refused in one error, and the network stays what it was."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from diffulex_core.errors import CheckpointError
from diffulex_core.layers.linear import Multiplies
from diffulex_core.weights import STANDARD_DECODER, Rename, Skip, WeightRules
from diffulex_core.weights.lora import warn_of_another_base
from tests.core.checkpoints import Checkpoint, write_llada_checkpoint, write_weights
from tests.core.lora_families import EXPERTS_FAMILY, LLADA_CASE, QWEN2_CASE, write_experts
from tests.core.lora_kit import Family, adapter_tensors, random_matrices, write_adapter

Q, DOWN = "model.layers.{}.self_attn.q_proj", "model.layers.{}.mlp.down_proj"
SHAPES = {Q.format(0): (32, 32), Q.format(1): (32, 32), DOWN.format(0): (32, 48), DOWN.format(1): (32, 48)}
TARGETS = ["q_proj", "down_proj"]
FILE = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return QWEN2_CASE.write(tmp_path_factory.mktemp("base"))


def tensors() -> dict[str, Tensor]:
    return adapter_tensors(random_matrices(SHAPES, 4))


def name_of(path: str, side: str) -> str:
    return f"base_model.model.{path}.lora_{side}.weight"


def refuse(family: Family, base: Checkpoint, adapter: Path, *, merge: bool = False) -> tuple[str, ...]:
    """The problems of an adapter; the network must be untouched."""
    model = family.load(base)
    assert isinstance(model, nn.Module)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    products = [module.multiply for module in model.modules() if isinstance(module, Multiplies)]
    with pytest.raises(CheckpointError) as raised:
        family.adapt(model, base, adapter, merge=merge)
    assert raised.value.where == str(adapter)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.multiply for module in model.modules() if isinstance(module, Multiplies)] == products
    return raised.value.problems


def only_problem(family: Family, base: Checkpoint, adapter: Path, *, merge: bool = False) -> str:
    [problem] = refuse(family, base, adapter, merge=merge)
    return problem


def test_everything_that_does_not_fit_is_in_one_error(tmp_path: Path, base: Checkpoint) -> None:
    held = tensors()
    held[name_of(Q.format(0), "A")] = torch.zeros(4, 31)
    held[name_of(Q.format(1), "B")] = torch.zeros(33, 4)
    del held[name_of(DOWN.format(1), "A")], held[name_of(DOWN.format(1), "B")]
    del held[name_of(DOWN.format(0), "B")]
    held |= adapter_tensors(random_matrices({"model.layers.2.self_attn.q_proj": (32, 32), "lm_head": (97, 32)}, 4))
    held["base_model.model.lm_head.modules_to_save.weight"] = torch.zeros(97, 32)
    adapter = write_adapter(tmp_path, held, target_modules=[*TARGETS, "c_attn"], use_dora=True, r=4)
    problems = refuse(QWEN2_CASE.family, base, adapter)
    text = "\n".join(problems)
    for words in (
        "adapter_config.json: use_dora is True",
        f"{name_of(Q.format(0), 'A')!r} in {FILE} has shape [4, 31], but rank 4 over 'layers.0",
        "over 'layers.0.attn.qkv.weight' (part 'q') [32, 32] needs [rank, in] = [4, 32].",
        f"{name_of(Q.format(1), 'B')!r} in {FILE} has shape [33, 4], but rank 4",
        f"{name_of(DOWN.format(0), 'A')!r} in {FILE} comes without its lora_B.",
        f"{DOWN.format(1)!r} is a target, but the adapter holds no lora_A and lora_B for it",
        "'base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight' in adapter_model.safetensors has no place in",
        "'base_model.model.lm_head.lora_A.weight' in adapter_model.safetensors is not used: 'lm_head' is not among",
        "'base_model.model.lm_head.modules_to_save.weight' in adapter_model.safetensors is a whole module",
        "target_modules names 'c_attn', but no linear layer of the checkpoint is called so.",
    ):
        assert words in text, text
    assert len(problems) == 10, text  # the lone lora_A's layer is also a target without a pair


@pytest.mark.parametrize(("r", "pattern"), [(5, {}), (4, {"0.self_attn.q_proj": 3})], ids=["r", "rank_pattern"])
def test_another_rank_than_the_configuration_says_is_a_fault(
    tmp_path: Path, base: Checkpoint, r: int, pattern: dict[str, int]
) -> None:
    adapter = write_adapter(tmp_path, tensors(), target_modules=TARGETS, r=r, rank_pattern=pattern)
    problems = refuse(QWEN2_CASE.family, base, adapter)
    assert len(problems) == (2 if pattern else 8)
    assert all(f"but rank {3 if pattern else 5} over" in problem for problem in problems)


def test_an_adapter_for_another_model_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    wider = {path: (2 * out, 2 * width) for path, (out, width) in SHAPES.items()}
    adapter = write_adapter(tmp_path, adapter_tensors(random_matrices(wider, 4)), target_modules=TARGETS)
    problems = refuse(QWEN2_CASE.family, base, adapter, merge=True)
    assert len(problems) == 8
    llada = LLADA_CASE.write(tmp_path / "llada")
    problems = refuse(LLADA_CASE.family, llada, adapter)
    assert sum("has no place in this model" in problem for problem in problems) == 4


def test_a_misspelt_layer_is_answered_with_the_closest_one(tmp_path: Path, base: Checkpoint) -> None:
    held = adapter_tensors(random_matrices({"model.layers.0.self_atn.q_proj": (32, 32)}, 4))
    adapter = write_adapter(tmp_path, held, target_modules=["model.layers.0.self_atn.q_proj"])
    assert "The checkpoint has 'model.layers.0.self_attn.q_proj'." in only_problem(QWEN2_CASE.family, base, adapter)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("fan_in_fan_out", True),
        ("lora_bias", True),
        ("trainable_token_indices", [1, 2]),
        ("layer_replication", [[0, 1], [0, 1]]),
        ("alora_invocation_tokens", [5]),
        ("use_qalora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("use_bdlora", {"nblocks": 2}),
        ("kasa_config", {"beta": 1}),
        ("monteclora_config", {"num_samples": 1}),
        ("arrow_config", {"top_k": 1}),
        ("megatron_config", {"tensor_model_parallel_size": 2}),
        ("ensure_weight_tying", True),
        ("a_key_of_tomorrow", 1),
    ],
)
def test_an_option_that_would_change_the_adapter_is_refused_by_name(
    tmp_path: Path, base: Checkpoint, key: str, value: object
) -> None:
    adapter = write_adapter(tmp_path, tensors(), target_modules=TARGETS, **{key: value})
    problem = only_problem(QWEN2_CASE.family, base, adapter)
    assert problem.startswith(f"adapter_config.json: {key} is {value!r}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; it must be 'LORA'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"r": 0}, "r is 0; it must be a whole number of at least 1"),
        ({"r": 4.5}, "r is 4.5"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; it must be a number"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"use_rslora": 1}, "use_rslora is 1; it must be true or false"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern is {'q_proj': 0}; it must be an object"),
        ({"alpha_pattern": [1]}, "alpha_pattern is [1]; it must be an object that gives a number for each name"),
        ({"alpha_pattern": {"(q": 1}}, "alpha_pattern holds '(q', which is no regular expression"),
        ({"target_modules": "(q_proj"}, "target_modules holds '(q_proj', which is no regular expression"),
        ({"target_modules": {"q_proj": 1}}, "target_modules is {'q_proj': 1}; it must be a list of names or a regular"),
        ({"exclude_modules": [1]}, "exclude_modules is [1]"),
        ({"layers_to_transform": [True]}, "layers_to_transform is [True]; it must be a layer's number or a list"),
        ({"layers_pattern": [3]}, "layers_pattern is [3]; it must be a name or a list of names"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3; it must be text"),
    ],
    ids=str,
)
def test_a_value_that_makes_no_sense_is_named(
    tmp_path: Path, base: Checkpoint, changes: Mapping[str, Any], words: str
) -> None:
    adapter = write_adapter(tmp_path, tensors(), **{"target_modules": TARGETS, **changes})
    assert words in only_problem(QWEN2_CASE.family, base, adapter)


@pytest.mark.parametrize("key", ["peft_type", "r", "lora_alpha"])
def test_rank_and_alpha_are_never_guessed(tmp_path: Path, base: Checkpoint, key: str) -> None:
    adapter = write_adapter(tmp_path, tensors(), target_modules=TARGETS)
    content = json.loads((adapter / "adapter_config.json").read_text())
    del content[key]
    (adapter / "adapter_config.json").write_text(json.dumps(content))
    assert f"{key} is missing" in only_problem(QWEN2_CASE.family, base, adapter)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.embed_tokens.lora_embedding_A", "adapts an embedding"),
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", "belongs to DoRA"),
        ("model.layers.0.self_attn.q_proj.lora_B.bias", "is a bias of an adapter"),
        ("model.layers.0.self_attn.q_proj.lora_A.second.weight", "belongs to an adapter of another name"),
        ("model.layers.0.self_attn.q_proj.bias", "is no part of a LoRA adapter"),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", "are the same matrix; remove one"),
        ("model.layers.0.self_attn.k_proj.base_layer.weight", "is not used: 'model.layers.0.self_attn.k_proj' carries"),
    ],
)
def test_a_tensor_that_is_no_plain_lora_is_named(tmp_path: Path, base: Checkpoint, name: str, words: str) -> None:
    adapter = write_adapter(
        tmp_path, {**tensors(), f"base_model.model.{name}": torch.zeros(4, 32)}, target_modules=TARGETS
    )
    problem = only_problem(QWEN2_CASE.family, base, adapter)
    assert f"base_model.model.{name}" in problem
    assert words in problem


def test_a_stored_copy_of_another_base_gives_the_adapter_away(tmp_path: Path, base: Checkpoint) -> None:
    held = adapter_tensors(random_matrices({"lm_head": (97, 32)}, 4))
    held["base_model.model.lm_head.base_layer.weight"] = base.tensors["lm_head.weight"] + 1e-3
    adapter = write_adapter(tmp_path, held, target_modules=["lm_head"])
    problem = only_problem(QWEN2_CASE.family, base, adapter)
    assert "'base_model.model.lm_head.base_layer.weight' in adapter_model.safetensors differs from the check" in problem


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_damaged_number_is_found(tmp_path: Path, base: Checkpoint, number: float) -> None:
    held = tensors()
    held[name_of(Q.format(1), "B")][3, 2] = number
    adapter = write_adapter(tmp_path, held, target_modules=TARGETS)
    problem = only_problem(QWEN2_CASE.family, base, adapter, merge=True)
    assert problem.startswith(f"{name_of(Q.format(1), 'B')!r} in {FILE} holds NaN or infinite numbers")


def test_whole_numbers_are_no_adapter(tmp_path: Path, base: Checkpoint) -> None:
    held = tensors()
    held[name_of(Q.format(1), "B")] = torch.zeros(32, 4, dtype=torch.int64)
    adapter = write_adapter(tmp_path, held, target_modules=TARGETS)
    assert "holds I64, but an adapter holds floating-point numbers" in only_problem(QWEN2_CASE.family, base, adapter)


def test_layers_that_do_not_exist_are_no_targets(tmp_path: Path, base: Checkpoint) -> None:
    held = adapter_tensors(random_matrices({path: SHAPES[path] for path in SHAPES if ".1." in path}, 4))
    adapter = write_adapter(tmp_path, held, target_modules=TARGETS, layers_to_transform=[1, 7])
    problem = only_problem(QWEN2_CASE.family, base, adapter)
    assert problem == "layers_to_transform names layer 7, but no target lies there."


def _cut(adapter: Path) -> None:
    (adapter / FILE).write_bytes((adapter / FILE).read_bytes()[:100])


def _binary(adapter: Path) -> None:
    (adapter / FILE).rename(adapter / "adapter_model.bin")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda adapter: (adapter / "adapter_config.json").unlink(),
            "adapter_config.json is missing. An adapter's",
        ),
        (lambda adapter: (adapter / "adapter_config.json").write_text("{"), "cannot be read as JSON"),
        (lambda adapter: (adapter / FILE).unlink(), "There are no weights: looked for adapter_model.safetensors.index"),
        (_binary, "adapter_model.bin cannot be read; convert"),
        (_cut, "adapter_model.safetensors is damaged or cut off"),
    ],
    ids=["no configuration", "no JSON", "no weights", "pickled weights", "cut off"],
)
def test_a_damaged_directory_is_described(
    tmp_path: Path, base: Checkpoint, damage: Callable[[Path], object], words: str
) -> None:
    adapter = write_adapter(tmp_path, tensors(), target_modules=TARGETS)
    damage(adapter)
    assert words in only_problem(QWEN2_CASE.family, base, adapter)


def test_an_adapter_without_any_layer_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    adapter = write_adapter(tmp_path, {}, target_modules=None)
    assert only_problem(QWEN2_CASE.family, base, adapter) == "It holds no lora_A and lora_B of any layer."


def test_an_adapter_over_one_side_of_a_tie_is_refused(tmp_path: Path) -> None:
    tied = write_llada_checkpoint(tmp_path / "base", weight_tying=True, vocab_size=97, embedding_size=104)
    held = adapter_tensors(random_matrices({"model.transformer.ff_out": (104, 32)}, 4))
    adapter = write_adapter(tmp_path / "adapter", held, target_modules=["model.transformer.ff_out"])
    for merge in (False, True):
        problem = only_problem(LLADA_CASE.family, tied, adapter, merge=merge)
        assert "'base_model.model.model.transformer.ff_out.lora_A.weight'" in problem
        assert "shares its weight with another layer ('embed.weight' = 'lm_head.weight')" in problem


def test_an_adapter_over_an_embedding_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    held = adapter_tensors(random_matrices({"model.embed_tokens": (97, 32)}, 4))
    adapter = write_adapter(tmp_path, held, target_modules=["embed_tokens"])
    assert "is an embedding ('embed.weight')" in only_problem(QWEN2_CASE.family, base, adapter)


def test_experts_take_an_adapter_into_their_weights_only(tmp_path: Path) -> None:
    base = write_experts(tmp_path / "base")
    path = "model.layers.1.mlp.experts.2.up_proj"
    held = adapter_tensors(random_matrices({path: (24, 32)}, 4))
    adapter = write_adapter(tmp_path / "adapter", held, target_modules=[path])
    problem = only_problem(EXPERTS_FAMILY, base, adapter)
    assert problem.startswith(f"{path!r} ('layers.1.mlp.experts.w13' (part '2.up')) cannot run an adapter beside")
    assert "pre_merge_lora=True" in problem
    assert EXPERTS_FAMILY.adapt(EXPERTS_FAMILY.load(base), base, adapter, merge=True).layers == (path,)


@pytest.mark.parametrize(
    ("base_name", "warned"),
    [
        ("GSAI-ML/LLaDA-8B-Instruct", False),
        ("models/llada-8b-instruct/", False),
        (None, False),
        ("", False),
        ("GSAI-ML/LLaDA-8B-Base", True),
    ],
)
def test_an_adapter_trained_over_another_model_brings_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, base_name: str | None, warned: bool
) -> None:
    adapter = write_adapter(tmp_path, {}, base_model_name_or_path=base_name)
    with caplog.at_level(logging.WARNING):
        warn_of_another_base(adapter, ("GSAI-ML/LLaDA-8B-Instruct", "/cache/snapshots/0a1b"))
    assert [repr(base_name) in record.message for record in caplog.records] == [True] * warned


def test_a_model_that_is_called_by_its_directory_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = write_adapter(tmp_path, {}, base_model_name_or_path="GSAI-ML/LLaDA-8B-Base")
    with caplog.at_level(logging.WARNING):
        warn_of_another_base(adapter, ("/models/instruct", "/models/instruct"))
    [record] = caplog.records
    assert "but the model is '/models/instruct'. Over" in record.message


def with_rules(*rules: Rename | Skip) -> Family:
    """Qwen2 with more rules for weights."""
    return attrs.evolve(QWEN2_CASE.family, weights=WeightRules(*STANDARD_DECODER, *rules))


def test_two_names_of_one_weight_cannot_both_carry_an_adapter(tmp_path: Path, base: Checkpoint) -> None:
    family = with_rules(Rename("other.{i}.down.weight", "layers.{i}.mlp.down.weight"))
    held = {**tensors(), **adapter_tensors(random_matrices({"other.1.down": (32, 48)}, 4))}
    adapter = write_adapter(tmp_path, held, target_modules=[*TARGETS, "down"])
    problem = only_problem(family, base, adapter)
    assert problem.startswith(f"{DOWN.format(1)!r} and 'other.1.down' are names of one weight")


def test_layers_that_the_family_leaves_out_are_no_targets_but_tensors_for_them_are_a_fault(tmp_path: Path) -> None:
    family = with_rules(Skip("model.extra.*", "it predicts further tokens"))
    plain = QWEN2_CASE.write(tmp_path / "base")
    stored = {**plain.tensors, "model.extra.q_proj.weight": torch.ones(32, 32)}
    write_weights(plain.folder, stored)
    base = attrs.evolve(plain, tensors=stored)
    adapter = write_adapter(tmp_path / "without", tensors(), target_modules=TARGETS)
    assert set(family.adapt(family.load(base), base, adapter, merge=False).layers) == set(SHAPES)
    held = {**tensors(), **adapter_tensors(random_matrices({"model.extra.q_proj": (32, 32)}, 4))}
    adapter = write_adapter(tmp_path / "with", held, target_modules=TARGETS)
    assert "is left out of this model: it predicts further tokens" in only_problem(family, base, adapter)
