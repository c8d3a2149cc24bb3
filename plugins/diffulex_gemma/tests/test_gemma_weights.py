"""Checkpoints in every published layout: each tensor lands where it belongs, copies must agree, faults are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffulex_core.context import BuildContext
from diffulex_core.errors import CheckpointError
from diffulex_core.host import Host
from diffulex_core.plugin import Capability
from diffulex_core.weights import LoadReport, load_weights
from diffulex_gemma import plugin
from diffulex_gemma.config import gemma_spec
from diffulex_gemma.model import DiffusionGemma, build
from diffulex_gemma.oracle import hf_reference
from diffulex_gemma.weights import WEIGHTS
from tests.core.checkpoints import write_weights
from tests.families.gemma import CPU, native_model, save

DECODER, ENCODER = "model.decoder.", "model.encoder.language_model."
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as transformers writes it."""
    folder: Path = tmp_path_factory.mktemp("gemma")
    save(native_model(), folder)
    return folder


@pytest.fixture(scope="module")
def config(saved: Path) -> Mapping[str, object]:
    return save(native_model(), saved)


@pytest.fixture
def tensors(saved: Path) -> Tensors:
    return load_file(saved / "model.safetensors")


def load(
    folder: Path, config: Mapping[str, object], dtype: torch.dtype = torch.float32
) -> tuple[DiffusionGemma, LoadReport]:
    model = DiffusionGemma(gemma_spec(config), BuildContext(dtype=dtype, device=torch.device("meta")))
    return model, load_weights(model, WEIGHTS, folder, config, dtype=dtype, device=CPU, progress=False)


def shared(tensors: Tensors) -> Tensors:
    """What encoder and decoder have in common, below the decoder's prefix."""
    own = ("layer_scalar", "self_conditioning")
    return {
        name.removeprefix(DECODER): tensor
        for name, tensor in tensors.items()
        if name.startswith(DECODER) and not any(word in name for word in own)
    }


def as_saved(tensors: Tensors) -> Tensors:
    return tensors


def encoder_copy(tensors: Tensors) -> Tensors:
    common = shared(tensors)
    rest = {name: tensor for name, tensor in tensors.items() if name.removeprefix(DECODER) not in common}
    return {**rest, **{ENCODER + name: tensor for name, tensor in common.items()}}


def both_copies(tensors: Tensors) -> Tensors:
    return {**tensors, **{ENCODER + name: tensor.clone() for name, tensor in shared(tensors).items()}}


def both_and_head(tensors: Tensors) -> Tensors:
    return {**both_copies(tensors), "lm_head.weight": tensors[f"{DECODER}embed_tokens.weight"].clone()}


def text_only(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if "vision" not in name}


@pytest.mark.parametrize("layout", [as_saved, encoder_copy, both_copies, both_and_head, text_only])
@pytest.mark.parametrize("files", [1, 5])
def test_every_layout_gives_the_same_network(
    tmp_path: Path,
    config: Mapping[str, object],
    tensors: Tensors,
    layout: Callable[[Tensors], Tensors],
    files: int,
) -> None:
    write_weights(tmp_path, layout(tensors), files)
    model, report = load(tmp_path, config)
    state = model.state_dict()
    for layer in range(6):
        for role, copy in (("decoder", DECODER), ("encoder", ENCODER)):
            scalar = tensors[f"{copy}layers.{layer}.layer_scalar"]
            assert torch.equal(state[f"layers.{layer}.{role}_scalar"], scalar)
    for name, tensor in shared(tensors).items():
        if "layernorm" in name:
            assert torch.equal(state[name], tensor)
    assert torch.equal(state["embed.weight"], tensors[f"{DECODER}embed_tokens.weight"])
    assert torch.equal(state["layers.3.experts.w13"], tensors[f"{DECODER}layers.3.experts.gate_up_proj"])
    assert report.tensors == len(text_only(tensors))
    assert {name for name in tensors if "vision" in name} == set(report.skipped) or layout is text_only
    assert set(report.skipped.values()) <= {"only text is served"}


def test_each_number_of_the_checkpoint_is_written_once(
    tmp_path: Path, config: Mapping[str, object], tensors: Tensors
) -> None:
    numbered, counter = {}, 1
    for name, tensor in text_only(tensors).items():
        numbered[name] = torch.arange(counter, counter + tensor.numel(), dtype=torch.float32).view(tensor.shape)
        counter += tensor.numel()
    save_file(numbered, tmp_path / "model.safetensors")
    model, _ = load(tmp_path, config)
    held = [*model.parameters(), *model.buffers()]
    assert torch.cat([tensor.flatten() for tensor in held]).sort().values.tolist() == list(range(1, counter))
    qkv = model.get_submodule("layers.0.attn.qkv")
    assert torch.equal(qkv.parts("weight")["v"].view, numbered[f"{DECODER}layers.0.self_attn.v_proj.weight"])
    assert set(model.get_submodule("layers.5.attn.qk").parts("weight")) == {None, "q", "k"}


@pytest.mark.parametrize(
    "name", ["layers.2.self_attn.q_proj.weight", "layers.5.router.scale", "embed_tokens.weight", "norm.weight"]
)
def test_copies_that_differ_are_refused_by_both_names(
    tmp_path: Path, config: Mapping[str, object], tensors: Tensors, name: str
) -> None:
    stored = both_copies(tensors)
    stored[ENCODER + name][..., -1] += 1
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        load(tmp_path, config)
    [problem] = raised.value.problems
    assert f"'{DECODER}{name}'" in problem
    assert f"'{ENCODER}{name}'" in problem
    assert "differ" in problem


def test_a_head_that_is_not_the_embedding_is_refused(
    tmp_path: Path, config: Mapping[str, object], tensors: Tensors
) -> None:
    save_file({**tensors, "lm_head.weight": torch.zeros(97, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight.*embed_tokens.*differ"):
        load(tmp_path, config)


def test_every_fault_of_a_checkpoint_is_in_one_error(
    tmp_path: Path, config: Mapping[str, object], tensors: Tensors
) -> None:
    for name in ("layers.1.layer_scalar", "layers.4.router.scale", "self_conditioning.up_proj.weight"):
        del tensors[DECODER + name]
    del tensors[f"{ENCODER}layers.0.layer_scalar"]
    tensors[f"{DECODER}layers.5.self_attn.v_proj.weight"] = torch.zeros(16, 32)
    tensors[f"{DECODER}layers.0.experts.down_proj.weight"] = torch.zeros(4, 32, 12)
    tensors[f"{DECODER}layers.2.experts.gate_up_proj"] = torch.zeros(4, 32, 24)
    tensors["model.language_model.norm.weight"] = torch.zeros(32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        load(tmp_path, config)
    text = "\n".join(raised.value.problems)
    assert len(raised.value.problems) == 8, text
    for words in (
        f"'{DECODER}layers.1.layer_scalar'",
        f"'{ENCODER}layers.0.layer_scalar'",
        f"no '{DECODER}layers.4.router.scale' or '{ENCODER}layers.4.router.scale'",
        f"'{DECODER}self_conditioning.up_proj.weight'",
        f"'{DECODER}layers.5.self_attn.v_proj.weight' [16, 32]",
        f"'{DECODER}layers.0.experts.down_proj.weight' [4, 32, 12]",
        f"'{DECODER}layers.2.experts.gate_up_proj'",
        "'model.language_model.norm.weight' [32]",
    ):
        assert words in text, text


def test_the_router_keeps_full_precision_and_everything_else_has_the_dtype_asked_for(
    saved: Path, config: Mapping[str, object], tensors: Tensors
) -> None:
    model, _ = load(saved, config, torch.bfloat16)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert tensor.dtype == (torch.float32 if ".router." in name else torch.bfloat16), name
    assert torch.equal(model.state_dict()["layers.1.router.weight"], tensors[f"{DECODER}layers.1.router.proj.weight"])


def test_nothing_is_kept_for_each_of_the_positions_that_the_model_could_reach(config: Mapping[str, object]) -> None:
    text = config["text_config"]
    assert isinstance(text, Mapping)
    long = {**config, "text_config": {**text, "max_position_embeddings": 262144}}
    short, far = (
        DiffusionGemma(gemma_spec(one), BuildContext(dtype=torch.float32, device=CPU)) for one in (config, long)
    )
    assert [tensor.shape for tensor in short.buffers()] == [tensor.shape for tensor in far.buffers()] == [(1,)] * 12


def test_the_oracle_takes_a_checkpoint_and_refuses_half_of_one(config: Mapping[str, object], tensors: Tensors) -> None:
    model = hf_reference(config, tensors)
    scalars = {name: tensor for name, tensor in model.state_dict().items() if "layer_scalar" in name}
    assert len(scalars) == 12
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in scalars.items())
    del tensors[f"{DECODER}norm.weight"]
    with pytest.raises(ValueError, match=r"norm\.weight"):
        hf_reference(config, tensors)


def test_the_family_is_registered_under_its_names_and_its_references_lead_somewhere() -> None:
    host = Host.discover([plugin.__name__], environ={}, extra=[plugin])
    entry = host.models.entry("diffusiongemma")
    family = entry.descriptor
    assert family.name == "diffusion_gemma"
    assert family.architectures == ("DiffusionGemmaForBlockDiffusion",)
    assert family.provides == {Capability.SELF_CONDITIONING}
    assert host.load(family.build, provenance=entry.provenance) is build
    assert host.load(family.weights, provenance=entry.provenance) is WEIGHTS
    tiny = host.load(family.tiny or "", provenance=entry.provenance)
    assert host.load(family.check_config or "", provenance=entry.provenance)(tiny) == []
    assert host.load(family.hf_reference or "", provenance=entry.provenance) is hf_reference
    assert build(tiny, BuildContext(dtype=torch.float32, device=CPU)).windows == (5, None)
