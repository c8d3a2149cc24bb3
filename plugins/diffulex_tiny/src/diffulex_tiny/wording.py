"""The words of the problems: who has what, and how gains and losses are told."""

from __future__ import annotations

import random

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


def change(rng: random.Random, sign: int, number: int, more: tuple[str, ...], fewer: tuple[str, ...]) -> str:
    """A clause about gaining (`sign` 1) or losing (-1) `number` things, such as `buys 30 more`."""
    return rng.choice(more if sign > 0 else fewer).format(n=number)


def spelling(rng: random.Random) -> str:
    """A name that the vocabulary does not hold."""
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 5))).capitalize()
