"""How each family's logits are read, as the published models' documentation has it, and that each trait matters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import pytest
import torch

from diffulex_core.engine import Diffulex
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.plugin import ModelFamily, SamplerTraits
from diffulex_core.sampling_params import SamplingParams
from tests.families.subjects import PLAIN
from tests.integration.matrix import Checkpoints, host, prompt

AFTER, ALWAYS = "after_semi_complete", "always"
TRAITS = {
    # family: (which row decides a position, when a block decides one token although none is sure, default strategy)
    "llada": ("aligned", AFTER, "d2f"),
    "llada2": ("aligned", AFTER, "multi_bd"),
    "dream": ("shifted", AFTER, "d2f"),
    "dream_reasoner": ("aligned", AFTER, "multi_bd"),
    "sdar": ("aligned", AFTER, "multi_bd"),
    "sdar_moe": ("aligned", AFTER, "multi_bd"),
    "stable_diffcoder": ("aligned", ALWAYS, "multi_bd"),
    "fast_dllm_v2": ("shifted", AFTER, "fast_dllm_v2"),
    "diffusion_gemma": ("aligned", None, "diffusion_gemma"),
}
"""Typed from the description of the published samplers. None: the family fills no masks, so nothing reads the rule."""

FILLING = [subject.family for subject in PLAIN if TRAITS[subject.family.name][1] is not None]
EACH = pytest.mark.parametrize("family", FILLING, ids=lambda family: family.name)


def test_every_family_has_the_traits_of_its_published_sampler() -> None:
    found = {
        subject.family.name: (
            subject.family.logits,
            subject.family.sampler.force_rule if "mask_token" in subject.family.provides else None,
            subject.family.default_strategy,
        )
        for subject in PLAIN
    }
    assert found == TRAITS


def test_a_sampler_has_no_other_traits_than_those_tested_here() -> None:
    assert [field.name for field in attrs.fields(SamplerTraits)] == ["force_rule"]


@pytest.fixture(scope="module")
def checkpoints() -> Iterator[Checkpoints]:
    made = Checkpoints()
    yield made
    made.close()


def answers(
    family: ModelFamily,
    checkpoints: Checkpoints,
    *,
    read_as: Mapping[str, Any] | None = None,
    thresholds: Mapping[str, float] | None = None,
    **settings: Any,
) -> list[ReqTrajectory]:
    """What a family's small checkpoint answers, with other traits than its own where `read_as` says so."""
    options = {"decoding_strategy": "multi_bd", "block_size": 4, "page_size": 8, "buffer_size": 2, "num_pages": 64}
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, thresholds=thresholds or {})
    with Diffulex(checkpoints(family.name), host=host(), skip_warmup=True, **{**options, **settings}) as engine:
        parts = engine._open
        assert parts.req_context.shifted == (family.logits == "shifted")
        assert parts.req_context.force_rule == family.sampler.force_rule
        engine._parts = attrs.evolve(parts, req_context=attrs.evolve(parts.req_context, **(read_as or {})))
        with torch.no_grad():
            parts.runner.network.final_norm.weight.mul_(3.0)  # type: ignore[attr-defined]
        return list(engine.generate([prompt(6 + 3 * salt, salt) for salt in range(4)], params))


def tokens(records: list[ReqTrajectory]) -> list[tuple[int, ...]]:
    return [record.token_ids for record in records]


def forwards(records: list[ReqTrajectory]) -> int:
    return sum(record.nfe for record in records)


@EACH
def test_reading_the_other_row_answers_otherwise(family: ModelFamily, checkpoints: Checkpoints) -> None:
    other = answers(family, checkpoints, read_as={"shifted": family.logits == "aligned"})
    assert tokens(other) != tokens(answers(family, checkpoints))


@EACH
def test_a_block_that_waits_for_its_predecessor_takes_more_forwards(
    family: ModelFamily, checkpoints: Checkpoints
) -> None:
    """Where no token is sure enough, a block that always decides one does not wait."""
    doubt = {"accept_threshold": 1.0, "semi_complete_threshold": 1.0}
    spent = {
        rule: forwards(answers(family, checkpoints, read_as={"force_rule": rule}, **doubt)) for rule in (AFTER, ALWAYS)
    }
    assert spent[AFTER] > spent[ALWAYS]
    assert forwards(answers(family, checkpoints, **doubt)) == spent[TRAITS[family.name][1] or AFTER]


@EACH
def test_every_family_heeds_the_threshold_of_the_engine_and_of_a_request(
    family: ModelFamily, checkpoints: Checkpoints
) -> None:
    low, high = (answers(family, checkpoints, accept_threshold=value) for value in (0.1, 0.95))
    assert forwards(low) < forwards(high)
    asked = answers(family, checkpoints, accept_threshold=0.95, thresholds={"accept_threshold": 0.1})
    assert tokens(asked) == tokens(low)
