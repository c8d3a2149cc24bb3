"""Training loop of the masked-diffusion checkpoints: resumable, on the CPU, over an endless stream of problems."""

from __future__ import annotations

import random
import time
from pathlib import Path

import attrs
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from diffulex_tiny import problems
from diffulex_tiny.recipe import corruption, tokenizer as vocabulary


@attrs.frozen(kw_only=True)
class Recipe:
    """Everything that decides a training run; units: tokens, steps, sequences."""

    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    ffn_size: int = 384
    context: int = 512
    rope_theta: float = 10000.0
    steps: int = 7500
    batch: int = 128
    learning_rate: float = 2e-3
    warmup: int = 300
    weight_decay: float = 0.1
    spell_names: float = 0.1
    drill_share: float = 0.6
    drill_until: float = 0.75
    first_largest: int = 12
    largest_from: float = 0.237
    seed: int = 0


DRILL_EQUATIONS = 10
"""Equations in one row of a drill."""

EQUATION_TOKENS = 6
RESULT_AT = 4
"""Tokens of an equation, and which of them is the result."""


@attrs.frozen(kw_only=True)
class Batch:
    """ids [batch, seq] int64 with the true answer, and the layout of its rows."""

    ids: Tensor
    layout: corruption.Layout


def build_network(recipe: Recipe, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """The training network: LLaDA's architecture is Llama's, run under an explicit mask."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.ffn_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
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


class Stream:
    """Endless batches of training problems; a step's batch depends on the seed and the step alone."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._eos = vocabulary.token_id(tokenizer, vocabulary.EOS)
        self._numbers = {tokenizer.encode(word).ids[0]: int(word) for word in vocabulary.number_words()}

    def batch(self, step: int) -> Batch:
        """The batch of one step: problems, or in some steps of the early part of training bare equations."""
        rng = random.Random(f"{self._recipe.seed}-{step}")
        largest = self.largest(step)
        early = step < self._recipe.drill_until * self._recipe.steps
        if early and rng.random() < self._recipe.drill_share:
            return self._drill(rng, largest)
        drawn = [
            problems.sample(rng, "train", largest=largest, spell_names=self._recipe.spell_names)
            for _ in range(self._recipe.batch)
        ]
        prompts = [encoding.ids for encoding in self._tokenizer.encode_batch([p.prompt for p in drawn])]
        answers = [encoding.ids for encoding in self._tokenizer.encode_batch([p.answer for p in drawn])]
        totals = []
        for prompt, answer in zip(prompts, answers, strict=True):
            unit = rng.choice(corruption.BLOCK_SIZES)
            totals.append(-(-(len(prompt) + len(answer) + 1) // unit) * unit)
        ids = torch.full((len(drawn), max(totals)), self._eos)
        results = torch.zeros(ids.shape, dtype=torch.bool)
        for row, (problem, prompt, answer) in enumerate(zip(drawn, prompts, answers, strict=True)):
            sequence = prompt + answer
            ids[row, : len(sequence)] = torch.tensor(sequence)
            for at in range(len(prompt), len(sequence)):
                results[row, at] = self._numbers.get(sequence[at]) in problem.results
        lengths, ends = torch.tensor([len(prompt) for prompt in prompts]), torch.tensor(totals)
        fillable = corruption.answer_region(lengths, ends, ids.shape[1])
        layout = corruption.Layout(prompt=lengths, total=ends, results=results, fillable=fillable)
        return Batch(ids=ids, layout=layout)

    def largest(self, step: int) -> int:
        """Largest operand of one step: it grows until `largest_from` of the run and then stays at the top."""
        grown = min(1.0, step / (self._recipe.largest_from * self._recipe.steps))
        return round(self._recipe.first_largest + grown * (problems.MAX_OPERAND - self._recipe.first_largest))

    def _drill(self, rng: random.Random, largest: int) -> Batch:
        """Unrelated equations in a row, without a prompt: many more sums for each token than a story holds."""
        rows = []
        for _ in range(self._recipe.batch):
            words = [problems.equation(rng, largest) for _ in range(DRILL_EQUATIONS)]
            rows.append(" ".join(words))
        ids = torch.tensor([encoding.ids for encoding in self._tokenizer.encode_batch(rows)])
        results = torch.zeros(ids.shape, dtype=torch.bool)
        results[:, RESULT_AT::EQUATION_TOKENS] = True
        return Batch(
            ids=ids,
            layout=corruption.Layout(
                prompt=torch.zeros(len(ids), dtype=torch.int64),
                total=torch.full((len(ids),), ids.shape[1]),
                results=results,
                fillable=results,
            ),
        )


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
    """Train to `recipe.steps`, resuming from `workdir/state.pt` when it is there.

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
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps - recipe.warmup),
        ],
        [recipe.warmup],
    )
    stream = Stream(recipe, tokenizer)
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
    for step in range(start, recipe.steps):
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
            rest = spent / done * (recipe.steps - done)
            print(
                f"step {done}/{recipe.steps}  loss {running / report_every:.4f}  "
                f"{spent / 60:.1f} min, {rest / 60:.1f} min to go",
                flush=True,
            )
            running = 0.0
        if done % save_every == 0 or done == recipe.steps:
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
