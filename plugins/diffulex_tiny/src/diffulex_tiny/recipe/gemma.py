"""tiny/gemma: canvases of random tokens that are denoised as a whole, behind an encoder's view of what precedes."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from diffulex_tiny import problems
from diffulex_tiny.recipe import canvases, tokenizer as vocabulary, warm
from diffulex_tiny.recipe.canvases import Canvases, Noise
from diffulex_tiny.recipe.easing import calibrate
from diffulex_tiny.recipe.gemma_network import GemmaNetwork, Shape
from diffulex_tiny.recipe.legs import Legs
from diffulex_tiny.recipe.loop import Schedule
from diffulex_tiny.recipe.stream import Mix, Stream

LEGS: Legs = ((2000, 4000), (2500, 7000), (5500, 5500))
"""The rates fall twice, the second time to nothing, and rise again where naming begins."""
T_MIN, T_MAX, BOUND = 0.4, 0.8, 0.1
"""The published sampler's temperatures, and the nats that the tokens it keeps may hold."""


@attrs.frozen(kw_only=True)
class Recipe:
    """Everything that decides the run.

    Attributes:
        eased_by: step at which all is in that a Llama has not.
        canvases: of each answer, in a step.
        kept_weight: of tokens that are right already, in the loss; those to put right weigh 1.
        naming: share of the steps on long problems that replace the things counted alone. Mixed with everything else,
            naming is never learned, as in `dream`.
        naming_from: step from which on they do, as in `dream`.
    """

    schedule: Schedule = Schedule(steps=8000, legs=LEGS)
    mix: Mix = Mix(steps=8000, legs=LEGS, long_rows=24, unit=(1,))
    eased_by: int = 800
    canvases: int = 2
    kept_weight: float = 0.3
    imbalance_weight: float = 0.01
    naming: float = 0.4
    naming_from: int = 5500
    seed: int = 0


@torch.no_grad()
def start_from(network: GemmaNetwork, dense: LlamaForCausalLM) -> None:
    """Make the network, at `share` 0, compute what a Llama with one layer less does.

    Of each MLP the first units become the dense one, the others all of the experts. Embeddings enter at root mean
    square 1, so what layers add is scaled likewise. The last layer adds nothing at first.
    """
    embedding = dense.get_parameter("model.embed_tokens.weight")
    scale = 1 / float(embedding.square().mean(1).sqrt().mean())
    root = network.shape.hidden_size**0.5
    network.embed_tokens.weight.copy_(embedding * scale / root)
    network.norm.weight.copy_(dense.get_parameter("model.norm.weight") * root / scale)
    network.self_conditioning.down_proj.weight.zero_()
    *layers, last = network.stack
    for index, own in enumerate(layers):
        old = dense.get_submodule(f"model.layers.{index}")
        own.input_layernorm.weight.copy_(old.get_parameter("input_layernorm.weight"))
        for part in ("q", "k", "v", "o"):
            name = f"self_attn.{part}_proj.weight"
            own.get_parameter(name).copy_(old.get_parameter(name))
        own.post_attention_layernorm.fill(scale)
        before = old.get_parameter("post_attention_layernorm.weight")
        own.pre_feedforward_layernorm.weight.copy_(before)
        own.pre_feedforward_layernorm_2.weight.copy_(before)
        gate, up, down = (old.get_parameter(f"mlp.{part}_proj.weight") for part in ("gate", "up", "down"))
        kept = network.shape.intermediate_size
        own.mlp.gate_proj.weight.copy_(gate[:kept])
        own.mlp.up_proj.weight.copy_(up[:kept])
        own.mlp.down_proj.weight.copy_(down[:, :kept])
        experts = own.experts
        experts.gate_up_proj.copy_(warm.varied(torch.cat((gate[kept:], up[kept:])), experts.gate_up_proj))
        experts.down_proj.copy_(warm.varied(down[:, kept:], experts.down_proj))
        own.post_feedforward_layernorm.fill(scale)
    last.post_attention_layernorm.fill(0.0)
    last.post_feedforward_layernorm.fill(0.0)


class Training:
    """An `Objective`: the clean tokens of canvases of which some, or all, are random."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        tokenizer = vocabulary.build_tokenizer()
        self._mask = vocabulary.token_id(tokenizer, vocabulary.MASK)
        self._things = vocabulary.things(tokenizer)
        self._stream = Stream(recipe.mix, tokenizer)
        torch.manual_seed(recipe.seed)
        self.network = GemmaNetwork(Shape(vocab_size=tokenizer.get_vocab_size()))
        start_from(self.network, warm.teacher(tokenizer))
        calibrate(self.network, lambda: self.loss(0))
        self.network.self_conditioning.post_norm.usual.fill_(1.0)

    def loss(self, step: int) -> Tensor:
        """Weighted cross-entropy over canvases; half of the time what the network said before conditions it."""
        share = min(1.0, step / self._recipe.eased_by)
        self.network.ease(share)
        noise = self._noise(1 - share)
        generator = torch.Generator().manual_seed(self._recipe.seed * 1_000_003 + step)
        batch = self._stream.batch(step)
        drawn = canvases.draw(batch, self._recipe.canvases, self.network.shape.canvas_length, generator)
        noisy = canvases.noised(drawn, noise, generator)
        asked_for = drawn.fillable
        things = torch.isin(drawn.clean, self._things) & drawn.fillable
        naming = step >= self._recipe.naming_from and float(torch.rand(1, generator=generator)) < self._recipe.naming
        if naming and things.any():
            noisy = torch.where(things, noise.like(drawn.clean, generator), drawn.clean)
            asked_for = things
        believed = None
        if float(torch.rand(1, generator=generator)) < 0.5:
            with torch.no_grad():
                heat = T_MIN + (T_MAX - T_MIN) * float(torch.rand(1, generator=generator))
                believed = self._logits(drawn, noisy, None) / heat
            if float(torch.rand(1, generator=generator)) < 0.5:
                noisy = canvases.sampled(drawn, believed, noise, BOUND, generator)
        logits = self._logits(drawn, noisy, believed)
        weights = torch.where(noisy == drawn.clean, self._recipe.kept_weight, 1.0) * asked_for
        asked = weights > 0
        losses = torch.nn.functional.cross_entropy(logits[asked], drawn.clean[asked], reduction="none")
        return (
            losses * weights[asked]
        ).sum() / weights.sum() + self._recipe.imbalance_weight * self.network.imbalance()

    def after_step(self) -> None:
        """Nothing to do."""

    @torch.no_grad()
    def probe(self) -> str:
        """Problems denoised canvas by canvas, as the published sampler does, in at most 16 steps each."""
        told = []
        tasks: tuple[tuple[problems.Task, int], ...] = (("two_step", 100), ("long", 16))
        generator = torch.Generator().manual_seed(1)
        length, noise = self.network.shape.canvas_length, self._noise(0.0)
        for task, count in tasks:
            batch = self._stream.of(list(problems.problems(2, "eval", count, task)), [1] * count)
            right = torch.ones(count, dtype=torch.bool)
            # Each canvas is asked behind the true ones before it, so this is what all of them get right.
            for index in range(canvases.most(batch, length)):
                drawn = canvases.draw(batch, 1, length, generator, index)
                believed = self._logits(drawn, noise.like(drawn.clean, generator), None) / T_MAX
                for step in range(15):
                    canvas = canvases.sampled(drawn, believed, noise, BOUND, generator)
                    believed = self._logits(drawn, canvas, believed) / (T_MIN + (T_MAX - T_MIN) * (15 - step) / 16)
                right &= (believed.argmax(-1) == drawn.clean).all(dim=1)
            told.append(f"{task} {float(right.float().mean()):.2f}")
        return "exact on unseen problems: " + ", ".join(told)

    def _noise(self, masks: float) -> Noise:
        return Noise(vocab_size=len(self.network.embed_tokens.weight), mask_id=self._mask, masks=masks)

    def _logits(self, drawn: Canvases, noisy: Tensor, believed: Tensor | None) -> Tensor:
        """[batch, canvas rows, vocab] float32."""
        with torch.autocast("cpu", torch.bfloat16):
            ids = torch.cat((drawn.encoded, noisy), dim=1)
            rows = drawn.encoded.shape[1]
            states = self.network(ids, drawn.positions, rows, drawn.visible, believed)
            return self.network.logits(states[:, rows:])
