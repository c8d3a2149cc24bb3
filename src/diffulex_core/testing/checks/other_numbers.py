"""Checks of networks beside others of their family: with other weights, and other numbers in config.json."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import attrs
import torch
from torch import Tensor

from diffulex_core.context import BuildContext
from diffulex_core.errors import ConfigError
from diffulex_core.protocols import DiffusionModel
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.forward import META, network_of
from diffulex_core.testing.pristine import pristine
from diffulex_core.testing.sequences import Pass, run_alone, token_ids
from diffulex_core.testing.subjects import CPU, FamilySubject
from diffulex_core.testing.tolerances import require_close, rows_that_differ
from diffulex_core.testing.views import cut_view
from diffulex_core.weights import dummy_weights

LENGTH = 23
"""Tokens that a network is fed."""


@check(FamilySubject)
def check_networks_of_one_process_do_not_meet(subject: FamilySubject, effort: Effort) -> None:
    """A network answers as it does in a process of its own, after another of its family with other numbers.

    It has other weights, or another rotary base or epsilon in config.json. For the comparison the family's package is
    imported anew, as a fresh process would.

    Why: programs run several engines beside each other. A table or a merged weight that a module keeps for all
    networks answers one of them with what belongs to another.
    Fix: keep tensors on the network that they were made for. What a module keeps (dictionaries, `lru_cache`) is keyed
    by all that it was made from.
    """
    first = _logits(subject, network_of(subject))
    for what, other, seed in _others(subject):
        found = _logits(other, network_of(other, seed=seed))
        with pristine(subject.family.build) as build:
            if build is None:
                return
            network = build(dict(other.config), BuildContext(dtype=torch.float32, device=META))
            dummy_weights(network, device=CPU, seed=seed)
            alone = _logits(other, network)
        require_close(found, alone, f"with {what}, after a network with others")
        require_close(_logits(subject, network_of(subject)), first, f"after a network with {what}")


def _others(subject: FamilySubject) -> Iterator[tuple[str, FamilySubject, int]]:
    """(what is different, the family, seed of the weights)."""
    yield "other weights", subject, 1
    for path, value in _numbers(subject.config):
        other = attrs.evolve(subject, config=_changed(subject.config, path, value))
        if takes(other):
            yield f"{'.'.join(path)}={value:g} in config.json", other, 0


@check(FamilySubject, level="recommended")
def check_numbers_of_the_config_count(subject: FamilySubject, effort: Effort) -> None:
    """Another rotary base, or another epsilon of a norm, in config.json gives other logits.

    Why: a network with one of them built in, or with a table that was made for another config.json, loads every
    checkpoint of the family and reads only some of them well.
    Fix: read the number where `build` reads the others, and keep no table at the level of a module: two engines of one
    process may have different ones. If the network has no use for it, leave it out of the small config.json.
    """
    base = _logits(subject, network_of(subject))
    for what, other, seed in _others(subject):
        if seed == 0 and not any(rows_that_differ(_logits(other, network_of(other)), base)):
            raise CheckFailed(f"with {what} the logits are what they were.")


def _logits(subject: FamilySubject, network: DiffusionModel) -> Tensor:
    """Of random tokens, and of the mask token where config.json names it."""
    mask = subject.config.get("mask_token_id")
    tokens = [*token_ids(network, LENGTH, Random(2)), *([mask] * 2 if type(mask) is int else [])]
    return run_alone(network, Pass(tokens=tokens, cut=0, view=cut_view(subject.family)))


def takes(subject: FamilySubject) -> bool:
    """Whether a family builds a network of a config.json that the check made up."""
    check_config = subject.family.check_config
    if check_config is not None and subject.load(check_config)(dict(subject.config)):
        return False
    try:
        network_of(subject)
    except ConfigError:
        return False
    return True


def _numbers(config: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], float]]:
    """(where, another value) of each rotary base and epsilon."""
    found = list[tuple[tuple[str, ...], float]]()
    for key, value in config.items():
        if isinstance(value, Mapping):
            found += _numbers(value, (*above, key))
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            if key.endswith("rope_theta"):
                found.append(((*above, key), 7.0 * value))
            elif key.endswith(("norm_eps", "norm_epsilon")):
                found.append(((*above, key), 0.5))
    return found


def _changed(config: Mapping[str, Any], path: tuple[str, ...], value: float) -> dict[str, Any]:
    key, *below = path
    return {**config, key: _changed(config[key], tuple(below), value) if below else value}


CHECKS: tuple[AnyCheck, ...] = (
    check_networks_of_one_process_do_not_meet,
    check_numbers_of_the_config_count,
)
