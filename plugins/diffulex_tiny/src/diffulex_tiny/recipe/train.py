"""tiny/llada from nothing, by a training loop of its own: resumable, over an endless stream of problems."""

from __future__ import annotations

import time
from pathlib import Path

import attrs
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from diffulex_tiny.recipe import corruption, tokenizer as vocabulary
from diffulex_tiny.recipe.sizes import Sizes
from diffulex_tiny.recipe.stream import Batch, Mix, Stream


@attrs.frozen(kw_only=True)
class Recipe:
    """Everything that decides a training run; units: tokens, steps, sequences."""

    sizes: Sizes = Sizes()
    rope_theta: float = 10000.0
    mix: Mix = Mix(
        steps=7500,
        rows=128,
        drill=0.6,
        drill_until=0.75,
        long=0.0,
        first_largest=12,
        largest_from=0.237,
    )
    learning_rate: float = 2e-3
    warmup: int = 300
    weight_decay: float = 0.1
    seed: int = 0


def build_network(recipe: Recipe, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """The training network: LLaDA's architecture is Llama's, run under an explicit mask."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        **recipe.sizes.described(),
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        tie_word_embeddings=True,
        use_cache=False,
    )
    network = LlamaForCausalLM(config)
    start_numbers_from_digits(network.model.embed_tokens.weight, tokenizer)
    return network


@torch.no_grad()
def start_numbers_from_digits(embedding: Tensor, tokenizer: Tokenizer) -> None:
    """Set the first value of each number's embedding to the sum of one random vector for each of its digits.

    A number is one token; sharing its digits' vectors lets what is learned of one sum serve all with the same digits.
    """
    digits = torch.randn(3, 10, embedding.shape[1]) * embedding.std()
    for word in vocabulary.number_words():
        [index] = tokenizer.encode(word).ids
        units, tens, hundreds = int(word) % 10, int(word) // 10 % 10, int(word) // 100
        embedding[index] = 0.25 * embedding[index] + digits[0, units] + digits[1, tens] + digits[2, hundreds]


def loss_of(network: LlamaForCausalLM, batch: Batch, mask_id: int, generator: torch.Generator) -> Tensor:
    """Mean cross-entropy over the hidden answer tokens, under the visibility that this step draws."""
    kind = int(torch.randint(6, (1,), generator=generator))
    block_size = corruption.BLOCK_SIZES[int(torch.randint(len(corruption.BLOCK_SIZES), (1,), generator=generator))]
    hidden = corruption.draw_hidden(batch.layout, block_size, kind >= 2, generator)
    match kind:
        case 0 | 1:
            visible = corruption.full_attention(batch.layout)
        case 2:
            visible = corruption.block_causal(batch.layout, block_size)
        case 3:
            visible = corruption.full_prefix(batch.layout, block_size, prefill=True)
        case _:
            visible = corruption.full_prefix(batch.layout, block_size, prefill=False)
    inputs = torch.where(hidden, mask_id, batch.ids)
    states = network.model(input_ids=inputs, attention_mask=visible).last_hidden_state
    return torch.nn.functional.cross_entropy(network.lm_head(states[hidden]), batch.ids[hidden])


def train(recipe: Recipe, workdir: Path, report_every: int = 100, save_every: int = 500) -> LlamaForCausalLM:
    """Train to `recipe.mix.steps`, resuming from `workdir/state.pt` when it is there.

    Progress lines go to standard output; the state is written every `save_every` steps and at the end.
    """
    tokenizer = vocabulary.build_tokenizer()
    mask_id = vocabulary.token_id(tokenizer, vocabulary.MASK)
    network = build_network(recipe, tokenizer)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, recipe.warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.mix.steps - recipe.warmup),
        ],
        [recipe.warmup],
    )
    stream = Stream(recipe.mix, tokenizer)
    start = 0
    elapsed = 0.0
    state_file = workdir / "state.pt"
    workdir.mkdir(parents=True, exist_ok=True)
    if state_file.exists():
        state = torch.load(state_file)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        start, elapsed = state["step"], state["elapsed"]
        print(f"resumed at step {start}", flush=True)

    began = time.perf_counter() - elapsed
    running = 0.0
    for step in range(start, recipe.mix.steps):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(network, stream.batch(step), mask_id, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running += loss.item()
        done = step + 1
        if done % report_every == 0:
            spent = time.perf_counter() - began
            rest = spent / done * (recipe.mix.steps - done)
            print(
                f"step {done}/{recipe.mix.steps}  loss {running / report_every:.4f}  "
                f"{spent / 60:.1f} min, {rest / 60:.1f} min to go",
                flush=True,
            )
            running = 0.0
        if done % save_every == 0 or done == recipe.mix.steps:
            state = {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "step": done,
                "elapsed": time.perf_counter() - began,
            }
            torch.save(state, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)
    return network
