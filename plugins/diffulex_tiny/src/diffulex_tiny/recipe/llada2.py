"""tiny/llada2: a small mixture of experts that decodes blocks from left to right and corrects what it wrote."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM, LlamaForCausalLM
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter

from diffulex_tiny import problems
from diffulex_tiny.recipe import corruption, probe, tokenizer as vocabulary, warm, window
from diffulex_tiny.recipe.easing import EasedNorm, calibrate, eased_norms
from diffulex_tiny.recipe.loop import Schedule
from diffulex_tiny.recipe.sizes import Sizes
from diffulex_tiny.recipe.stream import Mix, Stream


@attrs.frozen(kw_only=True)
class Recipe:
    """Everything that decides the run."""

    schedule: Schedule = Schedule(steps=8000)
    mix: Mix = Mix(steps=8000)
    sizes: Sizes = Sizes()
    experts: int = 8
    experts_per_token: int = 2
    expert_size: int = 96
    shared_experts: int = 3
    groups: int = 4
    groups_kept: int = 2
    routed_scale: float = 1.0
    rope_theta: float = 100.0
    rope_share: float = 0.5
    balance: float = 1e-3
    norms_by: int = 600
    seed: int = 0


def build_network(recipe: Recipe, tokenizer: Tokenizer) -> Glm4MoeForCausalLM:
    """The training network: LLaDA2's architecture is GLM-4's, run under an explicit mask."""
    torch.manual_seed(recipe.seed)
    config = Glm4MoeConfig(
        vocab_size=tokenizer.get_vocab_size(),
        **recipe.sizes.described(),
        use_qk_norm=True,
        attention_bias=False,
        n_routed_experts=recipe.experts,
        num_experts_per_tok=recipe.experts_per_token,
        moe_intermediate_size=recipe.expert_size,
        n_shared_experts=recipe.shared_experts,
        n_group=recipe.groups,
        topk_group=recipe.groups_kept,
        routed_scaling_factor=recipe.routed_scale,
        norm_topk_prob=True,
        first_k_dense_replace=1,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        use_cache=False,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": recipe.rope_theta,
            "partial_rotary_factor": recipe.rope_share,
        },
    )
    config.head_dim = recipe.sizes.hidden_size // recipe.sizes.heads
    network = Glm4MoeForCausalLM(config)
    network.set_attn_implementation("eager")  # on a CPU its backward pass is the faster one
    return network


@torch.no_grad()
def upcycle(network: Glm4MoeForCausalLM, dense: LlamaForCausalLM) -> None:
    """Start from a dense network: each MLP's last units become all the routed experts, the others the shared one.

    As the weights of the chosen experts add up to 1, the mixture does at first what the MLP did. Half of the pairs of
    a head's values are rotated with half of the logarithm of theta, which are those that turned fastest. Norms of
    queries and keys come in later.
    """
    quarter = torch.arange(network.config.head_dim // 4)
    order = torch.cat([quarter + len(quarter) * part for part in (0, 2, 1, 3)])
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        network.get_parameter(name).copy_(dense.get_parameter(name))
    for index, layer in enumerate(network.model.layers):
        old = dense.get_submodule(f"model.layers.{index}")
        for name in ("input_layernorm", "post_attention_layernorm", "self_attn.v_proj", "self_attn.o_proj"):
            layer.get_parameter(f"{name}.weight").copy_(old.get_parameter(f"{name}.weight"))
        for part in ("q", "k"):
            name = f"self_attn.{part}_proj.weight"
            heads = old.get_parameter(name).unflatten(0, (-1, len(order)))
            layer.get_parameter(name).copy_(heads[:, order].flatten(0, 1))
            layer.set_submodule(f"self_attn.{part}_norm", EasedNorm(len(order), network.config.rms_norm_eps))
        gate, up, down = (old.get_parameter(f"mlp.{part}_proj.weight") for part in ("gate", "up", "down"))
        sparse = index >= network.config.first_k_dense_replace
        path = "mlp.shared_experts" if sparse else "mlp"
        kept = layer.get_parameter(f"{path}.gate_proj.weight").shape[0]
        layer.get_parameter(f"{path}.gate_proj.weight").copy_(gate[:kept])
        layer.get_parameter(f"{path}.up_proj.weight").copy_(up[:kept])
        layer.get_parameter(f"{path}.down_proj.weight").copy_(down[:, :kept])
        if sparse:
            inner, out = (layer.get_parameter(f"mlp.experts.{name}_proj") for name in ("gate_up", "down"))
            inner.copy_(warm.varied(torch.cat((gate[kept:], up[kept:])), inner))
            out.copy_(warm.varied(down[:, kept:], out))


class Training:
    """An `Objective`: masked and replaced tokens of running blocks, under a block-causal mask."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        tokenizer = vocabulary.build_tokenizer()
        self._mask = vocabulary.token_id(tokenizer, vocabulary.MASK)
        self._stream = Stream(recipe.mix, tokenizer)
        self._numbers = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.bool)
        for n in range(3 * problems.MAX_OPERAND + 1):
            self._numbers[vocabulary.token_id(tokenizer, f"Ġ{n}")] = True
        self.network = build_network(recipe, tokenizer)
        upcycle(self.network, warm.teacher(tokenizer))
        self._norms = eased_norms(self.network)
        self._routers = [each for each in self.network.modules() if isinstance(each, Glm4MoeTopkRouter)]
        self._loads = [torch.zeros(recipe.experts) for _ in self._routers]
        for router, load in zip(self._routers, self._loads, strict=True):
            router.register_forward_hook(_counting(load))
        calibrate(self.network, lambda: self.loss(0))

    def loss(self, step: int) -> Tensor:
        """Mean cross-entropy over the positions of the running blocks: masked, wrong, and right ones."""
        for norm in self._norms:
            norm.share = min(1.0, step / self._recipe.norms_by)
        generator = torch.Generator().manual_seed(self._recipe.seed * 1_000_003 + step)
        batch = self._stream.batch(step)
        sizes = corruption.BLOCK_SIZES
        # Small blocks are what is decoded most.
        block_size = sizes[int(torch.tensor([0.4, 0.3, 0.15, 0.15]).multinomial(1, generator=generator))]
        moment = window.draw_moment(batch.layout, block_size, generator)
        wrong, other = window.draw_wrong(batch.ids, moment, self._numbers, generator)
        inputs = torch.where(moment.hidden, self._mask, torch.where(wrong, other, batch.ids))
        with torch.autocast("cpu", torch.bfloat16):
            states = self._states(inputs, corruption.block_causal(batch.layout, block_size))
            logits = self.network.lm_head(states[moment.running])
        return torch.nn.functional.cross_entropy(logits.float(), batch.ids[moment.running])

    @torch.no_grad()
    def after_step(self) -> None:
        """Make experts that were chosen too seldom a little more attractive."""
        for router, load in zip(self._routers, self._loads, strict=True):
            step = self._recipe.balance * torch.sign(load.mean() - load)
            router.get_buffer("e_score_correction_bias").add_(step)
            load.zero_()

    def probe(self) -> str:
        def predict(ids: Tensor, visible: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                logits: Tensor = self.network.lm_head(self._states(ids, visible))
            return logits

        told = probe.told(self._stream, predict, self._mask)
        for load in self._loads:
            load.zero_()
        return told

    def _states(self, ids: Tensor, visible: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1])[None]
        out = self.network.model(input_ids=ids, attention_mask=corruption.bias(visible), position_ids=positions)
        states: Tensor = out.last_hidden_state
        return states


def _counting(load: Tensor) -> Callable[..., None]:
    """A forward hook that counts how often each expert is chosen."""

    def count(module: object, args: object, output: tuple[Tensor, Tensor, Tensor]) -> None:
        load.add_(torch.bincount(output[2].flatten(), minlength=len(load)))

    return count
