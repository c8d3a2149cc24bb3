"""Checks that weights are where their checkpoint names say: in which layer, in which expert, and at which end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import attrs
import torch
from torch import Tensor

from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.checks.projections import Loaded
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.layouts import plain_layout, unknown_names
from diffulex_core.testing.roles import heads
from diffulex_core.testing.subjects import FamilySubject

_NUMBER = re.compile(r"(?<![0-9A-Za-z])\d+(?![0-9A-Za-z])")
MANY = 4
"""Experts that are tried from the first one on, and as many of the last."""
_INPUT = ("embed_tokens", "embed", "embedding", "embeddings", "word_embeddings", "tok_embeddings", "wte", "embed_in")
_OUTPUT = ("lm_head", "head", "output", "embed_out", "unembed")
"""Words for the embedding of input ids, and for the head."""


@attrs.frozen(kw_only=True, eq=False)
class _Effect:
    """What changes once a tensor does.

    Attributes:
        place: the first layer that hands something else to attention; their number where only the last rows differ;
            None where nothing does.
        rows: of what differs there first.
    """

    place: int | None
    rows: frozenset[int]


def _effect(found: Loaded, name: str, before: tuple[list[Mapping[str, Tensor]], Tensor]) -> _Effect:
    tensor = found.tensors[name]
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) * tensor.std(unbiased=False)
    with found.changed(name, tensor + noise.to(tensor.dtype)):
        handed, hidden = found.look(closely=True)
    stages = [*zip(before[0], handed, strict=True), ({"hidden": before[1]}, {"hidden": hidden})]
    for place, (old, new) in enumerate(stages):
        rows = {
            row for role, tensor in old.items() for row, differs in enumerate(_differs(tensor, new[role])) if differs
        }
        if rows:
            return _Effect(place=place, rows=frozenset(rows))
    return _Effect(place=None, rows=frozenset())


def _differs(old: Tensor, new: Tensor) -> list[bool]:
    return (~torch.isclose(old, new, atol=1e-5, rtol=1e-5)).flatten(1).any(1).tolist()


@check(FamilySubject, when=unknown_names)
def check_tensors_are_in_the_layer_of_their_name(subject: FamilySubject, effort: Effort) -> None:
    """A tensor acts as far behind the queries, keys and values of its layer's number as its like do in other layers.

    Layers are told by the first number in a name, and where they are by the tensors called queries', keys' and values'.

    Why: an output projection or a norm of another layer has the same shape, so that it loads without an error.
    Fix: correct the rule that the tensor's name matches, above all how it makes the layer's number.
    """
    found = Loaded.of(subject, plain_layout(subject))
    before = found.look(closely=True)
    starts = dict[int, int]()
    for group in heads(found.layout.places):
        place = _effect(found, group.names["key"], before).place
        if group.layer >= 0 and place is not None:
            starts.setdefault(group.layer, place)
    alike = dict[str, dict[str, int]]()
    for name in found.layout.places:
        numbers = _NUMBER.findall(name)
        if numbers and int(numbers[0]) in starts:
            alike.setdefault(_NUMBER.sub("#", name, count=1), {})[name] = int(numbers[0])
    # One expert of a layer stands for all.
    kinds = {_NUMBER.sub("#", like): names for like, names in reversed(alike.items())}
    for names in kinds.values():
        behind = dict[str, int]()
        for name in sorted({min(names, key=names.__getitem__), max(names, key=names.__getitem__)}):
            layer = names[name]
            place = _effect(found, name, before).place
            if place is not None:
                behind[name] = place - starts[layer]
        if len(set(behind.values())) > 1:
            told = ", ".join(f"{name!r} {behind[name]}" for name in behind)
            raise CheckFailed(
                f"tensors of one kind act at different distances behind the keys of their layers (in layers): {told}."
            )


@check(FamilySubject, when=unknown_names)
def check_tensors_of_an_expert_belong_together(subject: FamilySubject, effort: Effort) -> None:
    """Tensors whose names have the same two numbers, a layer's and an expert's, act on the same rows.

    Why: experts have one shape. With the output of one behind the input of another, each token is sent through half of
    two of them, and nothing raises.
    Fix: correct the rule that the tensor's name matches, above all how it makes the expert's number.
    """
    found = Loaded.of(subject, plain_layout(subject))
    before = found.look(closely=True)
    groups = dict[str, list[str]]()
    for name in found.layout.places:
        numbers = list(_NUMBER.finditer(name))
        if len(numbers) == 2:
            groups.setdefault(name[: numbers[1].end()], []).append(name)
    shown = [*groups.values()]
    for names in shown if len(shown) <= 2 * MANY else [*shown[:MANY], *shown[-MANY:]]:
        effects = {name: each for name in names if (each := _effect(found, name, before)).place is not None}
        if len({(each.place, each.rows) for each in effects.values()}) > 1:
            told = ", ".join(f"{name!r} on rows {sorted(each.rows)}" for name, each in effects.items())
            raise CheckFailed(f"tensors of one expert act on different rows: {told}.")


@check(FamilySubject, when=unknown_names)
def check_ends_are_what_they_are_called(subject: FamilySubject, effort: Effort) -> None:
    """The tensor that its name calls the embedding changes what the first layer sees, and the head's does not.

    They are found by the usual words (embed_tokens, wte; lm_head, output). Tied ones are one tensor.

    Why: both have one row for each id. Swapped, they load without an error.
    Fix: correct the rules that the two names match.
    """
    found = Loaded.of(subject, plain_layout(subject))
    before = found.look(closely=True)
    names = [name for name, place in found.layout.places.items() if len(place.shape) == 2 and len(place.names) == 1]
    for name in _called(names, _INPUT):
        if _effect(found, name, before).place != 0:
            raise CheckFailed(f"{name!r} is called an embedding, and the first layer does not see it change.")
    for name in _called(names, _OUTPUT):
        place = _effect(found, name, before).place
        if place is not None:
            raise CheckFailed(f"{name!r} is called a head, and it changes what layers see, from layer {place} on.")


def _called(names: Iterable[str], words: tuple[str, ...]) -> list[str]:
    """The only tensor without a number of which these are words; nothing where there are several."""
    found = [name for name in names if set(name.split(".")) & set(words) and not _NUMBER.search(name)]
    return found if len(found) == 1 else []


CHECKS: tuple[AnyCheck, ...] = (
    check_tensors_are_in_the_layer_of_their_name,
    check_tensors_of_an_expert_belong_together,
    check_ends_are_what_they_are_called,
)
