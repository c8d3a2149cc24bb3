"""Training networks compute what transformers' own classes do with the exported checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, LlamaForCausalLM

from diffulex_dream.oracle import qwen2
from diffulex_llada.llada2.oracle import hf_reference as glm
from diffulex_tiny.recipe import dream, dream_export, gemma, gemma_export, llada2, llada2_export, warm
from diffulex_tiny.recipe.easing import EasedNorm, calibrate, eased_norms
from diffulex_tiny.recipe.gemma_network import GemmaNetwork, Shape
from diffulex_tiny.recipe.loop import Objective
from diffulex_tiny.recipe.stream import Mix
from diffulex_tiny.recipe.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
SMALL = Mix(steps=100, rows=4, long_rows=2)
LONG = attrs.evolve(SMALL, drill=0.0, long=1.0, long_from=0.0, long_by=0.01)
IDS = TOKENIZER.encode("Q: Ann has 12 apples, buys 30 more and gives away 7. How many are left?").ids


@pytest.fixture(scope="module")
def dense() -> LlamaForCausalLM:
    return warm.teacher(TOKENIZER)


def folder_of(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = load_file(path / "model.safetensors")
    return json.loads((path / "config.json").read_text()), {name: part.float() for name, part in tensors.items()}


@torch.no_grad()
def roughen(network: nn.Module) -> None:
    """Make every norm, scale and scalar something else than it starts as, and every weight one of bfloat16."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.dim() == 1:
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
        parameter.copy_(parameter.bfloat16())
    for norm in eased_norms(network):
        norm.usual.fill_(2.0)
        norm.share = 1.0


def everyone(rows: int) -> Tensor:
    return torch.ones(1, rows, rows, dtype=torch.bool)


@torch.no_grad()
def test_llada2_starts_as_tiny_llada_and_is_exported_as_glm(dense: LlamaForCausalLM, tmp_path: Path) -> None:
    network = llada2.build_network(llada2.Recipe(), TOKENIZER)
    llada2.upcycle(network, dense)
    ids = torch.tensor([IDS])
    mask = torch.zeros(1, 1, len(IDS), len(IDS))
    started = network(input_ids=ids, attention_mask=mask).logits
    taught = dense(input_ids=ids, attention_mask=mask).logits
    # Half of the slowest rotations are missing, and experts are not quite copies.
    assert (started.argmax(-1) == taught.argmax(-1)).all()
    assert (started - taught).norm() / taught.norm() < 0.05

    roughen(network)
    for name, bias in network.named_buffers():
        if name.endswith("correction_bias"):
            bias.copy_(torch.linspace(-0.5, 0.5, len(bias)))
    llada2_export.export(network, tmp_path)
    reference = glm(*folder_of(tmp_path))
    allow = (torch.arange(len(IDS))[:, None] // 4) >= (torch.arange(len(IDS))[None] // 4)
    block_causal = torch.where(allow, 0.0, torch.finfo(torch.float32).min)[None, None]
    ours = network(input_ids=ids, attention_mask=block_causal, use_cache=False).logits
    theirs = reference(input_ids=ids, attention_mask=block_causal, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_dream_starts_as_tiny_llada_and_is_exported_as_qwen2(dense: LlamaForCausalLM, tmp_path: Path) -> None:
    network = dream.build_network(dream.Recipe(), TOKENIZER)
    ids, mask = torch.tensor([IDS]), torch.zeros(1, 1, len(IDS), len(IDS))
    started = network(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(started, dense(input_ids=ids, attention_mask=mask).logits, atol=1e-4, rtol=1e-4)

    roughen(network)
    for parameter in network.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.01)  # biases start at zero
    dream_export.export(network, tmp_path)
    reference = qwen2(*folder_of(tmp_path))
    ours, theirs = (each(input_ids=ids, attention_mask=mask).logits for each in (network, reference))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_gemma_starts_as_tiny_llada(dense: LlamaForCausalLM) -> None:
    network = GemmaNetwork(Shape(vocab_size=TOKENIZER.get_vocab_size(), final_logit_softcapping=1e4))
    gemma.start_from(network, dense)
    ids = torch.tensor([IDS])
    positions = torch.arange(len(IDS))[None]
    taught = dense(input_ids=ids, attention_mask=torch.zeros(1, 1, len(IDS), len(IDS))).logits
    for encoded in (0, len(IDS), 9):
        started = network.logits(network(ids, positions, encoded, everyone(len(IDS))))
        assert (started - taught).norm() / taught.norm() < 0.05


@torch.no_grad()
def test_gemma_is_exported_as_the_native_class_computes_it(tmp_path: Path) -> None:
    torch.manual_seed(3)
    shape = Shape(vocab_size=TOKENIZER.get_vocab_size(), sliding_window=64, canvas_length=8, num_hidden_layers=3)
    network = GemmaNetwork(shape)
    network.embed_tokens.weight.mul_(0.1)
    network.ease(1.0)
    roughen(network)
    network.self_conditioning.post_norm.usual.fill_(1.0)
    gemma_export.export(network, tmp_path)
    native = native_gemma(tmp_path)
    generator = torch.Generator().manual_seed(1)
    canvas = torch.randint(shape.vocab_size, (1, 8), generator=generator)
    believed = 3 * torch.randn(1, 8, shape.vocab_size, generator=generator)
    prompt, rows = torch.tensor([IDS]), len(IDS)
    visible = everyone(rows + 8)
    visible[:, :rows] = torch.ones(rows, rows + 8, dtype=torch.bool).tril()
    for before in (None, believed):
        states = network(torch.cat((prompt, canvas), 1), torch.arange(rows + 8)[None], rows, visible, before)
        theirs = native(input_ids=prompt, decoder_input_ids=canvas, self_conditioning_logits=before).logits
        torch.testing.assert_close(network.logits(states[:, rows:]), theirs, atol=1e-3, rtol=1e-3)


def native_gemma(folder: Path) -> DiffusionGemmaForBlockDiffusion:
    config, tensors = folder_of(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {"model_type": "gemma4_vision", **sizes, "num_key_value_heads": 1, "head_dim": 8}
    native = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig.from_dict({**config, "vision_config": vision}))
    native.set_attn_implementation("eager")
    _, unexpected = native.load_state_dict(tensors, strict=False)
    assert unexpected == []
    return native.eval()


@torch.no_grad()
def test_an_eased_norm_is_nothing_at_first_and_a_norm_in_the_end() -> None:
    norm = EasedNorm(16, 1e-6)
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 4, 50)[:, None]
    assert torch.equal(norm(x), x)
    calibrate(norm, lambda: norm(x))
    norm.share = 0.5
    half = norm(x).square().mean(-1).sqrt()
    norm.share = 1.0
    plain = nn.functional.rms_norm(x, (16,), norm.final_weight(), 1e-6)
    torch.testing.assert_close(norm(x), plain)
    assert plain.square().mean() == pytest.approx(float(norm.usual) ** 2, rel=1e-4)
    assert half.std() < x.square().mean(-1).sqrt().std()


def test_recipes_have_networks_that_fit_into_6_mb() -> None:
    width = {"llada2": 2, "dream": 4, "gemma": 2}
    networks = {
        "llada2": llada2.build_network(llada2.Recipe(), TOKENIZER),
        "dream": dream.build_network(dream.Recipe(), TOKENIZER),
        "gemma": GemmaNetwork(Shape(vocab_size=TOKENIZER.get_vocab_size())),
    }
    for name, network in networks.items():
        assert sum(each.numel() for each in network.parameters()) * width[name] < 5_900_000, name
    assert attrs.asdict(Shape(vocab_size=1))["canvas_length"] == 32


@torch.no_grad()
def test_dream_reads_the_next_token_at_first_as_tiny_llada_does(dense: LlamaForCausalLM) -> None:
    training = dream.Training(dream.Recipe(mix=SMALL))
    ids, rows = torch.tensor([IDS]), len(IDS)
    # The first token has no row at first: nobody may see it.
    visible, mask = everyone(rows)[:, None], torch.zeros(1, 1, rows, rows)
    visible[..., -1], mask[..., 0] = False, torch.finfo(torch.float32).min
    started = training.network.lm_head(training.states(ids, visible))[:, :-1]
    taught = dense(input_ids=ids, attention_mask=mask).logits[:, 1:]
    assert (started - taught).norm() / taught.norm() < 1e-4


@pytest.mark.parametrize(
    "make",
    [
        lambda: llada2.Training(llada2.Recipe(mix=SMALL)),
        lambda: dream.Training(dream.Recipe(mix=SMALL)),
        lambda: gemma.Training(gemma.Recipe(mix=attrs.evolve(SMALL, unit=(1,)))),
    ],
    ids=["llada2", "dream", "gemma"],
)
def test_a_gradient_step_lowers_the_loss_on_its_batch(make: Callable[[], Objective]) -> None:
    training, step = make(), 30
    before = training.loss(step)
    assert torch.equal(before, training.loss(step))
    before.backward()
    with torch.no_grad():
        for parameter in training.network.parameters():
            if parameter.grad is not None:
                parameter.sub_(1e-3 * parameter.grad)
    training.after_step()
    assert training.loss(step) < before


@pytest.mark.parametrize(
    "make",
    [
        lambda **naming: dream.Training(dream.Recipe(mix=LONG, **naming)),
        lambda **naming: gemma.Training(gemma.Recipe(mix=attrs.evolve(LONG, unit=(1,)), **naming)),
    ],
    ids=["dream", "gemma"],
)
@torch.no_grad()
def test_things_are_asked_for_alone_from_a_step_on(make: Callable[..., Objective]) -> None:
    never, late = make(naming=0.0), make(naming=1.0, naming_from=31)
    alone = [torch.equal(never.loss(step), late.loss(step)) for step in range(28, 34)]
    assert alone == [True] * 3 + [False] * 3


@torch.no_grad()
def test_experts_that_nobody_chooses_become_more_attractive() -> None:
    training = llada2.Training(llada2.Recipe(mix=SMALL, balance=0.05))
    biases = {name: bias for name, bias in training.network.named_buffers() if name.endswith("correction_bias")}
    training.after_step()
    assert biases
    for bias in biases.values():
        bias.zero_()
        bias[0] = -5.0
    for step in range(3):
        training.loss(step)
        training.after_step()
    for bias in biases.values():
        assert bias[0] == pytest.approx(-5 + 3 * 0.05)
        assert bias[1:].min() < 0
