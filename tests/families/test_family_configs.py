"""config.json and every registered family: whose it is, which keys it cannot do without, and how it can be divided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any

import attrs
import pytest
import torch
from torch import nn

from diffulex_core.config import Origin
from diffulex_core.config.names import choose_family
from diffulex_core.context import BuildContext
from diffulex_core.distributed import Seat
from diffulex_core.errors import ConfigError
from diffulex_core.protocols import DiffusionModel
from tests.families.subjects import PLAIN, Subject, host

META = BuildContext(dtype=torch.float32, device=torch.device("meta"))
BY_USER = Origin(source="user", detail="the caller")
WRONG: tuple[object, ...] = (None, "many", {"a": 1}, -1, 0.5, float("inf"), 2**70, 10**400)
Path = tuple[str, ...]

each_subject = pytest.mark.parametrize("subject", PLAIN, ids=str)


def keys(config: Mapping[str, Any], above: Path = ()) -> Iterator[Path]:
    """The path of every value, sections included."""
    for key, value in config.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from keys(value, (*above, key))


def changed(config: Mapping[str, Any], path: Path, *value: object) -> dict[str, Any]:
    """The same with another value at the path, or with none."""
    head, *rest = path
    other = {key: part for key, part in config.items() if key != head}
    if rest:
        return {**other, head: changed(config[head], tuple(rest), *value)}
    return {**other, head: value[0]} if value else other


def check_names_the_key(subject: Subject, config: Mapping[str, Any], path: Path) -> None:
    """A config.json builds a network, or is refused for this key by the check and by the builder alike."""
    problems = subject.check(config)
    if not problems:
        assert isinstance(subject.build(config, META), nn.Module)
        return
    assert any(path[-1] in problem for problem in problems), f"{'.'.join(path)} is not named: {problems}"
    with pytest.raises(ConfigError) as raised:
        subject.build(config, META)
    assert list(raised.value.problems) == list(problems)


@each_subject
def test_the_small_config_is_sound_and_belongs_to_its_family(subject: Subject) -> None:
    assert subject.check(subject.config) == []
    assert isinstance(subject.network(), DiffusionModel)
    choice = choose_family(None, Origin(), subject.config, host())
    assert choice.descriptor is subject.family, choice.problems


@pytest.mark.parametrize(("subject", "other"), list(permutations(PLAIN, 2)), ids=str)
def test_a_checkpoint_under_another_familys_name_is_refused_and_both_are_named(
    subject: Subject, other: Subject
) -> None:
    for name in (other.family.name, *other.family.aliases):
        [problem] = choose_family(name, BY_USER, subject.config, host()).problems
        assert f"model_name is '{name}'" in problem
        assert f"config.json belongs to '{subject.family.name}'" in problem


@each_subject
def test_a_missing_key_is_optional_or_named(subject: Subject) -> None:
    for path in keys(subject.config):
        check_names_the_key(subject, changed(subject.config, path), path)


@each_subject
def test_a_value_of_the_wrong_kind_is_without_meaning_or_its_key_is_named(subject: Subject) -> None:
    for path in keys(subject.config):
        for value in WRONG:
            check_names_the_key(subject, changed(subject.config, path, value), path)


@each_subject
def test_the_shape_of_the_network_is_stated_not_guessed(subject: Subject) -> None:
    """A config.json with empty sections is refused, and every number that nothing stands in for is named."""
    empty = {key: {} for key, value in subject.config.items() if isinstance(value, Mapping)}
    problems = subject.check(empty)
    assert sum("is missing" in problem for problem in problems) >= 3
    with pytest.raises(ConfigError) as raised:
        subject.build(empty, META)
    assert list(raised.value.problems) == problems


def share_or_refusal(subject: Subject, seat: Seat) -> DiffusionModel | str:
    """One process's network, or why it cannot have one."""
    try:
        share: DiffusionModel = subject.build(subject.config, attrs.evolve(META, tp=seat))
    except ConfigError as error:
        return str(error)
    return share


@pytest.mark.parametrize("size", range(2, 9))
@each_subject
def test_heads_that_cannot_be_divided_among_the_processes_are_refused(subject: Subject, size: int) -> None:
    whole = subject.build(subject.config, META).kv_geometry
    possible = all(
        geometry.num_heads % size == 0 and (geometry.num_kv_heads % size == 0 or size % geometry.num_kv_heads == 0)
        for geometry in whole
    )
    for rank in range(size):
        share = share_or_refusal(subject, Seat(rank, size))
        if isinstance(share, str):
            assert f"tensor_parallel_size {size}" in share
            continue
        assert possible, f"{whole[0]} cannot be divided among {size} processes"
        for geometry, part in zip(whole, share.kv_geometry, strict=True):
            assert part.num_heads * size == geometry.num_heads
            assert part.num_kv_heads == max(1, geometry.num_kv_heads // size)
