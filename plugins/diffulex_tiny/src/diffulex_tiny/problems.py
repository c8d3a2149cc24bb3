"""Synthetic word problems with worked answers, and the train / evaluation split.

A problem is a number, some operations with one operand each, and a template that tells a story about them. The split
is a hash of the operands alone: every prompt shows its operands in order, so a prompt of one split cannot occur in the
other, whatever its names and wording.

There are two tasks. `two_step` problems have two operations and answers of 17 tokens: two equations and the result.
`long` problems have four to six operations and answers of 69 to 113 tokens that go through the story in sentences.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Literal

import attrs

from diffulex_tiny import long_form, short_form

Split = Literal["train", "eval"]
Task = Literal["two_step", "long"]

MAX_OPERAND = 30
LARGEST_NUMBER = 150
"""Largest number with a token of its own; leaves room for wider operands."""

EVAL_SHARE = 16
"""One sequence of operands in this many belongs to the evaluation split."""

LONG_STEPS = (4, 5, 6)
"""Operations of a `long` problem."""


@attrs.frozen(kw_only=True)
class Problem:
    """One word problem: `prompt` is what the model reads, `answer` what it must write, character for character.

    Attributes:
        operands: the number to start from, and one for each operation.
        results: what each operation gives.
    """

    prompt: str
    answer: str
    operands: tuple[int, ...]
    results: tuple[int, ...]


def split_of(operands: tuple[int, ...]) -> Split:
    """Split that owns a sequence of operands: a hash of the numbers, the same on every machine."""
    digest = hashlib.sha256(",".join(map(str, operands)).encode()).digest()
    return "eval" if int.from_bytes(digest[:4], "big") % EVAL_SHARE == 0 else "train"


def sample(
    rng: random.Random,
    split: Split,
    *,
    task: Task = "two_step",
    largest: int = MAX_OPERAND,
    spell_names: float = 0.0,
) -> Problem:
    """Draw one problem of `split`.

    Args:
        rng: source of randomness; the same state gives the same problem.
        split: which sequences of operands are allowed.
        task: which kind of problem.
        largest: largest operand; results of a `long` problem are at most twice as large.
        spell_names: share of `two_step` problems whose name is a random spelling that the vocabulary does not hold.
    """
    return _long(rng, split, largest) if task == "long" else _two_step(rng, split, largest, spell_names)


def problems(seed: int, split: Split, count: int, task: Task = "two_step") -> Iterator[Problem]:
    """`count` problems of `split` with pairwise different prompts, reproducible from `seed`."""
    rng = random.Random(f"{split}-{seed}" if task == "two_step" else f"{split}-{seed}-{task}")
    seen: set[str] = set()
    while len(seen) < count:
        problem = sample(rng, split, task=task)
        if problem.prompt not in seen:
            seen.add(problem.prompt)
            yield problem


def equation(rng: random.Random, largest: int = MAX_OPERAND) -> str:
    """One sum or difference in the form and the ranges of a worked answer, such as `42 - 7 = 35.`"""
    while True:
        a, b, sign = rng.randint(0, 2 * largest), rng.randint(1, largest), rng.choice((1, -1))
        if a + sign * b >= 0:
            return f"{a} {'+' if sign > 0 else '-'} {b} = {a + sign * b}."


def _long(rng: random.Random, split: Split, largest: int) -> Problem:
    while True:
        value = rng.randint(1, largest)
        operands, signs, results = [value], [], []
        for _ in range(rng.choice(LONG_STEPS)):
            n, sign = rng.randint(1, largest), rng.choice((1, -1))
            if not 0 <= value + sign * n <= 2 * largest:
                sign = -sign
            value += sign * n
            operands.append(n)
            signs.append(sign)
            results.append(value)
        if split_of(tuple(operands)) == split:
            break
    telling = long_form.tell(rng, operands, signs)
    return Problem(
        prompt=long_form.prompt_of(telling),
        answer=long_form.answer_of(telling, operands, signs, results),
        operands=tuple(operands),
        results=tuple(results),
    )


def _two_step(rng: random.Random, split: Split, largest: int, spell_names: float) -> Problem:
    while True:
        operands = (rng.randint(1, largest), rng.randint(1, largest), rng.randint(1, largest))
        signs = (rng.choice((1, -1)), rng.choice((1, -1)))
        first = operands[0] + signs[0] * operands[1]
        second = first + signs[1] * operands[2]
        if first >= 0 and second >= 0 and split_of(operands) == split:
            break
    return Problem(
        prompt=short_form.prompt_of(rng, operands, signs, spell_names),
        answer=short_form.answer_of(operands, signs, (first, second)),
        operands=operands,
        results=(first, second),
    )
