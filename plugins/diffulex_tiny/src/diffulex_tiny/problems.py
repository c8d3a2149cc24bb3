"""Synthetic two-step word problems with worked answers, and the train / evaluation split.

A problem is three operands, two operations and a template that tells a story about them. The split is a
hash of the operands alone: every prompt shows its operands in order, so a prompt of one split cannot occur in
the other, whatever its names and wording.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Literal

import attrs

Split = Literal["train", "eval"]

MAX_OPERAND = 30
LARGEST_NUMBER = 150
"""Largest number with a token of its own; leaves room for wider operands."""

EVAL_SHARE = 16
"""One operand triple in this many belongs to the evaluation split."""

NAMES = (
    "Ann", "Ben", "Cara", "Dan", "Eva", "Finn", "Gina", "Hugo", "Iris", "Jack", "Kim", "Leo",
    "Mia", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tara", "Udo", "Vera", "Will", "Yara", "Zoe",
)  # fmt: skip
ITEMS = (
    "apples", "books", "cards", "coins", "cups", "eggs", "flowers", "keys", "marbles", "nuts",
    "oranges", "pears", "pens", "plums", "shells", "stamps", "stickers", "stones", "tickets", "toys",
)  # fmt: skip

GAINS = ("buys {n} more", "finds {n} more", "gets {n} more", "picks up {n} more", "wins {n} more")
LOSSES = ("gives away {n}", "loses {n}", "sells {n}", "throws away {n}", "drops {n}")
PUTS = ("puts in {n}", "adds {n}")
TAKES = ("takes out {n}", "removes {n}")
ARRIVALS = ("gets {n} more", "buys {n} more")
SALES = ("sells {n}", "returns {n}")


@attrs.frozen(kw_only=True)
class Problem:
    """One word problem: `prompt` is what the model reads, `answer` what it must write, character for character."""

    prompt: str
    answer: str
    operands: tuple[int, int, int]
    results: tuple[int, int]


def split_of(operands: tuple[int, int, int]) -> Split:
    """Split that owns an operand triple: a hash of the numbers, the same on every machine."""
    digest = hashlib.sha256(",".join(map(str, operands)).encode()).digest()
    return "eval" if int.from_bytes(digest[:4], "big") % EVAL_SHARE == 0 else "train"


def sample(rng: random.Random, split: Split, *, largest: int = MAX_OPERAND, spell_names: float = 0.0) -> Problem:
    """Draw one problem of `split`.

    Args:
        rng: source of randomness; the same state gives the same problem.
        split: which operand triples are allowed.
        largest: largest operand.
        spell_names: share of problems whose name is a random spelling that the vocabulary does not hold.
    """
    while True:
        operands = (rng.randint(1, largest), rng.randint(1, largest), rng.randint(1, largest))
        signs = (rng.choice((1, -1)), rng.choice((1, -1)))
        first = operands[0] + signs[0] * operands[1]
        second = first + signs[1] * operands[2]
        if first >= 0 and second >= 0 and split_of(operands) == split:
            break
    return Problem(
        prompt=_tell(rng, operands, signs, spell_names),
        answer=_work(operands, signs, (first, second)),
        operands=operands,
        results=(first, second),
    )


def problems(seed: int, split: Split, count: int) -> Iterator[Problem]:
    """`count` problems of `split` with pairwise different prompts, reproducible from `seed`."""
    rng = random.Random(f"{split}-{seed}")
    seen: set[str] = set()
    while len(seen) < count:
        problem = sample(rng, split)
        if problem.prompt not in seen:
            seen.add(problem.prompt)
            yield problem


def equation(rng: random.Random, largest: int = MAX_OPERAND) -> str:
    """One sum or difference in the form and the ranges of a worked answer, such as `42 - 7 = 35.`"""
    while True:
        a, b, sign = rng.randint(0, 2 * largest), rng.randint(1, largest), rng.choice((1, -1))
        if a + sign * b >= 0:
            return f"{a} {'+' if sign > 0 else '-'} {b} = {a + sign * b}."


def _work(operands: tuple[int, int, int], signs: tuple[int, int], results: tuple[int, int]) -> str:
    a, b, c = operands
    first, second = results
    op1, op2 = ("+" if sign > 0 else "-" for sign in signs)
    return f"{a} {op1} {b} = {first}. {first} {op2} {c} = {second}. The answer is {second}."


def _tell(rng: random.Random, operands: tuple[int, int, int], signs: tuple[int, int], spell_names: float) -> str:
    a, b, c = operands
    name = _spelling(rng) if rng.random() < spell_names else rng.choice(NAMES)
    items = rng.choice(ITEMS)

    def clause(index: int, more: tuple[str, ...], fewer: tuple[str, ...]) -> str:
        return rng.choice(more if signs[index] > 0 else fewer).format(n=(b, c)[index])

    match rng.randrange(4):
        case 0:
            story = f"{name} has {a} {items}, {clause(0, GAINS, LOSSES)} and {clause(1, GAINS, LOSSES)}."
            question = rng.choice(("How many are left?", f"How many {items} are left?"))
        case 1:
            story = f"{name} has {a} {items}. First {name} {clause(0, GAINS, LOSSES)}, then {clause(1, GAINS, LOSSES)}."
            question = f"How many {items} does {name} have now?"
        case 2:
            story = f"There are {a} {items} in a box. {name} {clause(0, PUTS, TAKES)} and {clause(1, PUTS, TAKES)}."
            question = rng.choice((f"How many {items} are in the box?", "How many are left?"))
        case _:
            day = f"{clause(0, ARRIVALS, SALES)} in the morning and {clause(1, ARRIVALS, SALES)} in the evening"
            story = f"A shop has {a} {items}. It {day}."
            question = f"How many {items} does the shop have now?"
    return f"Q: {story} {question}"


def _spelling(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 5))).capitalize()
