"""How a problem of many steps is told, and how its answer goes through the steps in sentences."""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs

from diffulex_tiny import wording


@attrs.frozen(kw_only=True)
class Telling:
    """The wording of one problem; `{n}` stands for a number.

    Attributes:
        opening, question: the first and the last words of the prompt.
        joint: what stands between the last two clauses.
        actor: who does something, in the answer.
        state: the sentence of the answer that says how many there are after a step.
        clauses: one for each step, with its operand.
    """

    opening: str
    question: str
    joint: str
    actor: str
    state: str
    clauses: tuple[str, ...]


def tell(rng: random.Random, operands: Sequence[int], signs: Sequence[int]) -> Telling:
    """Draw the wording: `operands` is the start and one number for each of the `signs`."""
    name, items, start = rng.choice(wording.NAMES), rng.choice(wording.ITEMS), operands[0]

    def clauses(more: tuple[str, ...], fewer: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(wording.change(rng, sign, n, more, fewer) for sign, n in zip(signs, operands[1:], strict=True))

    match rng.randrange(4):
        case 0:
            return Telling(
                opening=f"{name} has {start} {items}, ",
                question=rng.choice(("How many are left?", f"How many {items} are left?")),
                joint=" and ",
                actor=name,
                state=f"{name} has {{n}} {items} now.",
                clauses=clauses(wording.GAINS, wording.LOSSES),
            )
        case 1:
            return Telling(
                opening=f"{name} has {start} {items}. First {name} ",
                question=f"How many {items} does {name} have now?",
                joint=", then ",
                actor=name,
                state=f"{name} has {{n}} {items} now.",
                clauses=clauses(wording.GAINS, wording.LOSSES),
            )
        case 2:
            return Telling(
                opening=f"There are {start} {items} in a box. {name} ",
                question=rng.choice((f"How many {items} are in the box?", "How many are left?")),
                joint=" and ",
                actor=name,
                state=f"There are {{n}} {items} now.",
                clauses=clauses(wording.PUTS, wording.TAKES),
            )
        case _:
            return Telling(
                opening=f"A shop has {start} {items}. It ",
                question=f"How many {items} does the shop have now?",
                joint=" and ",
                actor="It",
                state=f"It has {{n}} {items} now.",
                clauses=clauses(wording.ARRIVALS, wording.SALES),
            )


def prompt_of(telling: Telling) -> str:
    """The whole story and its question."""
    *first, last = telling.clauses
    return f"Q: {telling.opening}{', '.join(first)}{telling.joint}{last}. {telling.question}"


def answer_of(telling: Telling, operands: Sequence[int], signs: Sequence[int], results: Sequence[int]) -> str:
    """Two sentences for each step, one with its equation and one with where things stand, and the final answer."""
    sentences, before = [], operands[0]
    for clause, sign, n, after in zip(telling.clauses, signs, operands[1:], results, strict=True):
        sentences.append(f"{telling.actor} {clause}, {before} {'+' if sign > 0 else '-'} {n} = {after}.")
        sentences.append(telling.state.format(n=after))
        before = after
    return " ".join([*sentences, f"The answer is {results[-1]}."])
