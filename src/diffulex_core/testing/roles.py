"""What the names of checkpoint tensors say of their roles: queries, keys and values, gates and their partners."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import attrs

_HEADS = (
    ("q", "k", "v"), ("query", "key", "value"), ("queries", "keys", "values"), ("wq", "wk", "wv"), ("Wq", "Wk", "Wv"),
    ("qproj", "kproj", "vproj"), ("Q", "K", "V"),
)  # fmt: skip
"""Spellings of the words for query, key and value."""
_GATES = (("gate", "up"), ("w1", "w3"), ("ff", "up"), ("wg", "wu"))
"""Spellings of the words for what is put through the activation, and for what that is multiplied with."""

_WORDS = re.compile(r"([._])")
_NUMBERS = re.compile(r"(?<![0-9A-Za-z])\d+(?![0-9A-Za-z])")


@attrs.frozen(kw_only=True)
class Siblings:
    """Tensors whose names differ in one word only, which tells their roles.

    Attributes:
        names: by role.
    """

    names: Mapping[str, str]

    @property
    def family(self) -> str:
        """The names without numbers and without the word: equal for the same tensors of other layers."""
        return _NUMBERS.sub("#", min(self.names.values()))

    @property
    def layer(self) -> int:
        """The first number in the names; -1 where there is none."""
        found = _NUMBERS.search(min(self.names.values()))
        return int(found[0]) if found else -1


def heads(names: Iterable[str]) -> list[Siblings]:
    """Groups of a query's and a key's tensor, with the value's where there is one."""
    return list(_siblings(list(names), _HEADS, ("query", "key", "value"), least=2))


def gates(names: Iterable[str]) -> list[Siblings]:
    """Pairs of a gate's tensor and its partner's."""
    return list(_siblings(list(names), _GATES, ("gate", "up"), least=2))


def _siblings(
    names: list[str], spellings: Iterable[tuple[str, ...]], roles: tuple[str, ...], *, least: int
) -> Iterator[Siblings]:
    known = set(names)
    for name in names:
        words = _WORDS.split(name)
        for spelling in spellings:
            for place, word in enumerate(words):
                if word != spelling[0]:
                    continue
                others = ("".join([*words[:place], other, *words[place + 1 :]]) for other in spelling)
                found = {role: other for role, other in zip(roles, others, strict=True) if other in known}
                if all(role in found for role in roles[:least]):
                    yield Siblings(names=found)
