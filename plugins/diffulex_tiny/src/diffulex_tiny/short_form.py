"""How a problem of two steps is told, and how its answer works it out in two equations."""

from __future__ import annotations

import random

from diffulex_tiny import wording

Triple = tuple[int, int, int]
Pair = tuple[int, int]


def prompt_of(rng: random.Random, operands: Triple, signs: Pair, spell_names: float) -> str:
    """Draw the wording of a story and its question.

    Args:
        operands: the number to start from, and one for each of the `signs`.
        spell_names: probability of a name that the vocabulary does not hold.
    """
    a, b, c = operands
    name = wording.spelling(rng) if rng.random() < spell_names else rng.choice(wording.NAMES)
    items = rng.choice(wording.ITEMS)

    def clauses(more: tuple[str, ...], fewer: tuple[str, ...]) -> tuple[str, str]:
        first = wording.change(rng, signs[0], b, more, fewer)
        return first, wording.change(rng, signs[1], c, more, fewer)

    match rng.randrange(4):
        case 0:
            first, second = clauses(wording.GAINS, wording.LOSSES)
            story = f"{name} has {a} {items}, {first} and {second}."
            question = rng.choice(("How many are left?", f"How many {items} are left?"))
        case 1:
            first, second = clauses(wording.GAINS, wording.LOSSES)
            story = f"{name} has {a} {items}. First {name} {first}, then {second}."
            question = f"How many {items} does {name} have now?"
        case 2:
            first, second = clauses(wording.PUTS, wording.TAKES)
            story = f"There are {a} {items} in a box. {name} {first} and {second}."
            question = rng.choice((f"How many {items} are in the box?", "How many are left?"))
        case _:
            first, second = clauses(wording.ARRIVALS, wording.SALES)
            story = f"A shop has {a} {items}. It {first} in the morning and {second} in the evening."
            question = f"How many {items} does the shop have now?"
    return f"Q: {story} {question}"


def answer_of(operands: Triple, signs: Pair, results: Pair) -> str:
    """Both equations and the final answer."""
    a, b, c = operands
    first, second = results
    op1, op2 = ("+" if sign > 0 else "-" for sign in signs)
    return f"{a} {op1} {b} = {first}. {first} {op2} {c} = {second}. The answer is {second}."
