"""Endless batches of training problems of both tasks, and of drills of bare equations."""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs
import torch
from tokenizers import Tokenizer
from torch import Tensor

from diffulex_tiny import problems
from diffulex_tiny.recipe import corruption, tokenizer as vocabulary
from diffulex_tiny.recipe.legs import Legs, length

DRILL_EQUATIONS = 10
"""Equations in one row of a drill."""

EQUATION_TOKENS, RESULT_AT = 6, 4
"""Tokens of an equation, and which of them is the result."""


@attrs.frozen(kw_only=True)
class Batch:
    """ids [batch, seq] int64 with the true answer, and the layout of its rows."""

    ids: Tensor
    layout: corruption.Layout


@attrs.frozen(kw_only=True)
class Mix:
    """What batches hold.

    Attributes:
        steps: length of the run.
        legs: shares of the run are those of the leg's.
        rows: sequences in a batch of each kind.
        drill: share of drills until `drill_until` of the run; none later.
        long: share of `long` problems among the other batches; it grows from `long_from` to `long_by` of the run.
        first_largest: largest operand in the first step; it grows to the whole range until `largest_from` of the run.
        spell_names: see `problems.sample`.
        unit: an answer is padded with ends of text to a multiple of one of these.
    """

    steps: int
    legs: Legs = ()
    rows: int = 64
    long_rows: int = 32
    drill: float = 0.25
    drill_until: float = 0.8
    long: float = 0.5
    long_from: float = 0.05
    long_by: float = 0.2
    first_largest: int = problems.MAX_OPERAND
    largest_from: float = 0.1
    spell_names: float = 0.1
    unit: tuple[int, ...] = corruption.BLOCK_SIZES
    seed: int = 0


class Stream:
    """Batches by step; a step's batch depends on the seed and the step alone."""

    def __init__(self, mix: Mix, tokenizer: Tokenizer) -> None:
        self._mix, self._tokenizer = mix, tokenizer
        self._eos = vocabulary.token_id(tokenizer, vocabulary.EOS)
        self._numbers = {tokenizer.encode(word).ids[0]: int(word) for word in vocabulary.number_words()}

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        mix = self._mix
        rng, passed = random.Random(f"{mix.seed}-{step}"), step / length(step, mix.steps, mix.legs)
        grown = min(1.0, passed / mix.largest_from)
        largest = round(mix.first_largest + grown * (problems.MAX_OPERAND - mix.first_largest))
        if passed < mix.drill_until and rng.random() < mix.drill:
            return self._drill(rng, largest)
        if mix.long and rng.random() < mix.long * min(1.0, (passed - mix.long_from) / (mix.long_by - mix.long_from)):
            return self._told(rng, "long", mix.long_rows, largest)
        return self._told(rng, "two_step", mix.rows, largest)

    def _told(self, rng: random.Random, task: problems.Task, rows: int, largest: int) -> Batch:
        spell = self._mix.spell_names
        drawn = [problems.sample(rng, "train", task=task, largest=largest, spell_names=spell) for _ in range(rows)]
        return self.of(drawn, [rng.choice(self._mix.unit) for _ in drawn])

    def of(self, asked: Sequence[problems.Problem], units: Sequence[int]) -> Batch:
        """A batch of these problems, each padded to a multiple of its unit."""
        prompts = [encoding.ids for encoding in self._tokenizer.encode_batch([p.prompt for p in asked])]
        answers = [encoding.ids for encoding in self._tokenizer.encode_batch([p.answer for p in asked])]
        totals = [-(-(len(p) + len(a) + 1) // u) * u for p, a, u in zip(prompts, answers, units, strict=True)]
        ids = torch.full((len(asked), max(totals)), self._eos)
        results = torch.zeros(ids.shape, dtype=torch.bool)
        for row, (problem, prompt, answer) in enumerate(zip(asked, prompts, answers, strict=True)):
            sequence = prompt + answer
            ids[row, : len(sequence)] = torch.tensor(sequence)
            for at in range(len(prompt), len(sequence)):
                results[row, at] = self._numbers.get(sequence[at]) in problem.results
        starts, ends = torch.tensor([len(prompt) for prompt in prompts]), torch.tensor(totals)
        fillable = corruption.answer_region(starts, ends, ids.shape[1])
        layout = corruption.Layout(prompt=starts, total=ends, results=results, fillable=fillable)
        return Batch(ids=ids, layout=layout)

    def _drill(self, rng: random.Random, largest: int) -> Batch:
        """Unrelated equations in a row, without a prompt: many more sums for each token than a story holds."""
        rows = [
            " ".join(problems.equation(rng, largest) for _ in range(DRILL_EQUATIONS)) for _ in range(self._mix.rows)
        ]
        ids = torch.tensor([encoding.ids for encoding in self._tokenizer.encode_batch(rows)])
        results = torch.zeros(ids.shape, dtype=torch.bool)
        results[:, RESULT_AT::EQUATION_TOKENS] = True
        layout = corruption.Layout(
            prompt=torch.zeros(len(ids), dtype=torch.int64),
            total=torch.full((len(ids),), ids.shape[1]),
            results=results,
            fillable=results,
        )
        return Batch(ids=ids, layout=layout)
