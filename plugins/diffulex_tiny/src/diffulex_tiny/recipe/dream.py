"""tiny/dream: a network whose logits are shifted by one, started from tiny/llada.

The row of a token is asked for the next one. Read as rows of the next tokens, all of tiny/llada's rows are shifted
already; so that is how training starts, and what a row reads goes over from the next token to its own.
"""

from __future__ import annotations

import attrs
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from diffulex_tiny.recipe import corruption, probe, tokenizer as vocabulary, warm, window
from diffulex_tiny.recipe.legs import Legs
from diffulex_tiny.recipe.loop import Schedule
from diffulex_tiny.recipe.sizes import Sizes
from diffulex_tiny.recipe.stream import Batch, Mix, Stream

LEGS: Legs = ((7000, 10_000),)
"""The rates begin to fall before naming, and rise again where it begins."""


@attrs.frozen(kw_only=True)
class Recipe:
    """Everything that decides the run; the network has the sizes of tiny/llada.

    Attributes:
        shifted_by: step at which a row reads its own token and nothing of the next one.
        naming: share of the steps on long problems in which the things counted are hidden and all else is shown.
            Rows that name them hold a number and attend to sums; mixed with everything else, naming is never learned.
        naming_from: step from which on they are. When they begin before people are told apart, neither is learned.
    """

    schedule: Schedule = Schedule(steps=12_000, legs=LEGS)
    mix: Mix = Mix(steps=12_000, legs=LEGS, unit=(*corruption.BLOCK_SIZES, 64))
    sizes: Sizes = Sizes()
    rope_theta: float = 10000.0
    shifted_by: int = 600
    naming: float = 0.4
    naming_from: int = 7000
    seed: int = 0


def build_network(recipe: Recipe, tokenizer: Tokenizer) -> Qwen2ForCausalLM:
    """The training network: Dream's architecture is Qwen2's, which is Llama's with three biases.

    Its head is a matrix of its own, as Dream's is: what pushes down words that are never asked for, in answers of two
    steps the names of things, would make them the same as inputs, too.
    """
    torch.manual_seed(recipe.seed)
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        **recipe.sizes.described(),
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        use_cache=False,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
    )
    network = Qwen2ForCausalLM(config)
    network.set_attn_implementation("eager")  # on a CPU its backward pass is the faster one
    known = dict(warm.teacher(tokenizer).named_parameters())
    known["lm_head.weight"] = known["model.embed_tokens.weight"]
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(known.get(name, torch.zeros(())))
    return network


class Training:
    """An `Objective`: masked tokens under full, block-causal and full-prefix attention, predicted one row early."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        tokenizer = vocabulary.build_tokenizer()
        self._mask = vocabulary.token_id(tokenizer, vocabulary.MASK)
        self._things = vocabulary.things(tokenizer)
        self._stream = Stream(recipe.mix, tokenizer)
        self.network = build_network(recipe, tokenizer)
        self._share = 0.0

    def loss(self, step: int) -> Tensor:
        """Mean cross-entropy over the masked tokens that could be decided."""
        self._share = min(1.0, step / self._recipe.shifted_by)
        generator = torch.Generator().manual_seed(self._recipe.seed * 1_000_003 + step)
        batch = self._stream.batch(step)
        naming = step >= self._recipe.naming_from and float(torch.rand(1, generator=generator)) < self._recipe.naming
        hidden, asked, visible = self._draw(batch, generator, naming=naming)
        inputs = torch.where(hidden, self._mask, batch.ids)
        with torch.autocast("cpu", torch.bfloat16):
            states = self.states(inputs, visible)
            logits = self.network.lm_head(states[:, :-1][asked[:, 1:]])
        return torch.nn.functional.cross_entropy(logits.float(), batch.ids[asked])

    def _draw(self, batch: Batch, generator: torch.Generator, *, naming: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Masked positions, those of them that count, and who sees whom; things alone if there are any and `naming`."""
        layout = batch.layout
        things = torch.isin(batch.ids, self._things) & layout.fillable
        if naming and things.any():
            return things, things, corruption.full_attention(layout)
        kind = int(torch.randint(6, (1,), generator=generator))
        if kind < 2:
            hidden = corruption.draw_hidden(layout, layout.results.shape[1], blockwise=False, generator=generator)
            return hidden, hidden, corruption.full_attention(layout)
        sizes = corruption.BLOCK_SIZES
        block_size = sizes[int(torch.tensor([0.4, 0.3, 0.15, 0.15]).multinomial(1, generator=generator))]
        moment = window.draw_moment(layout, block_size, generator)
        asked = moment.hidden & moment.running
        match kind:
            case 2 | 3:
                visible = corruption.block_causal(layout, block_size)
            case 4:
                visible = corruption.full_prefix(layout, block_size, prefill=True)
            case _:
                visible = corruption.full_prefix(layout, block_size, prefill=False)
        return moment.hidden, asked, visible

    def after_step(self) -> None:
        """Nothing to do."""

    def probe(self) -> str:
        def predict(ids: Tensor, visible: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                logits: Tensor = self.network.lm_head(self.states(ids, visible))
            return torch.cat((logits[:, :1], logits[:, :-1]), dim=1)

        return probe.told(self._stream, predict, self._mask)

    def states(self, ids: Tensor, visible: Tensor) -> Tensor:
        """[batch, seq, hidden] of [batch, seq] ids; `visible` [batch, 1, seq, seq] bool says who sees whom."""
        positions = torch.arange(ids.shape[1])[None]
        read = self.network.model.embed_tokens(ids)
        if self._share < 1:
            read = torch.lerp(read.roll(-1, dims=1), read, self._share)
        out = self.network.model(inputs_embeds=read, attention_mask=corruption.bias(visible), position_ids=positions)
        states: Tensor = out.last_hidden_state
        return states
