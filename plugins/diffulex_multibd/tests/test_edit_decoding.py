"""Edit sampling against an oracle that decodes whole sequences by the published rules, and what each knob does."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest

from tests.families.oracle_revising import edit_step
from tests.families.revising_serving import EDIT, check, serve
from tests.integration.engines import prompt

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one block at a time": {"buffer": 1},
    "three blocks": {"buffer": 3, "add_block": 0.5},
    "small blocks": {"block": 4},
    "sure edits only": {"edit": 0.3},
    "no edits": {"edit": 1.0},
    "all masks at once": {"accept": 0.0},
    "one mask at a time": {"accept": 1.0},
    "few edits after filling": {"post_edit": 2},
    "no edits after filling": {"post_edit": 0},
    "discouraged repeats": {"penalty": 2.5},
    "remasking": {"remask": 0.3, "edit": 0.4},
    "remasking everything": {"remask": 1.0, "edit": 1.0},
    "steady blocks": {"stability": 0.9, "edit": 0.2},
    "heeding the end of text": {"ignore_eos": False, "max_tokens": 60},
    "an end inside a block": {"max_tokens": 19},
}


@pytest.mark.parametrize(("rules", "length"), [*zip(SETTINGS.values(), cycle((16, 11)), strict=False)], ids=SETTINGS)
def test_tokens_and_forwards_are_the_oracles(rules: dict[str, Any], length: int) -> None:
    check(edit_step, prompt(length), EDIT, **rules)


def test_a_higher_edit_threshold_replaces_fewer_tokens() -> None:
    edited = [
        serve([prompt(16)], EDIT, settings={"edit_threshold": threshold})[0].tokens_edited
        for threshold in (0.0, 0.4, 1.0)
    ]
    assert edited[0] > edited[1] > edited[2] == 0


def test_fewer_steps_after_filling_take_fewer_forwards() -> None:
    spent = [serve([prompt(16)], EDIT, settings={"max_post_edit_steps": steps})[0].nfe for steps in (16, 4, 0)]
    assert spent[0] > spent[1] > spent[2]


def test_a_penalty_leaves_fewer_equal_neighbours() -> None:
    def repeats(penalty: float) -> int:
        found = 0
        for answer in serve([prompt(16, salt) for salt in range(3)], EDIT, settings={"penalty_lambda": penalty}):
            tokens = answer.token_ids
            found += sum(tokens[at] == tokens[at - 1] for at in range(1, len(tokens)) if at % 8)
        return found

    assert repeats(0.0) > repeats(1000.0)


def test_a_penalty_keeps_the_temperatures_draws() -> None:
    answers = {
        serve([prompt(16)], EDIT, settings={"penalty_lambda": 0.5}, temperature=1.5, seed=seed)[0].token_ids
        for seed in range(3)
    }
    assert len(answers) == 3


def test_a_request_that_is_hardly_tempered_is_decided_as_a_greedy_one() -> None:
    greedy = serve([prompt(16)], EDIT)[0]
    tempered = serve([prompt(16)], EDIT, temperature=1e-4, top_k=1, seed=1)[0]
    assert (tempered.token_ids, tempered.nfe) == (greedy.token_ids, greedy.nfe)


def test_the_probability_that_edits_are_judged_by_is_the_untempered_one() -> None:
    hot = serve([prompt(16)], EDIT, settings={"edit_threshold": 0.5}, temperature=100.0, seed=1)[0]
    cold = serve([prompt(16)], EDIT, settings={"edit_threshold": 0.5}, temperature=0.01, seed=1)[0]
    assert hot.tokens_edited < cold.tokens_edited


def test_remasking_is_off_unless_asked_for() -> None:
    base = {"edit_threshold": 0.5}
    plain = serve([prompt(16)], EDIT, settings=base)[0]
    assert serve([prompt(16)], EDIT, settings={**base, "remask_threshold": 0.9})[0].token_ids == plain.token_ids
    remasked = serve([prompt(16)], EDIT, settings={**base, "remask_threshold": 0.9, "enable_remask": True})[0]
    assert remasked.token_ids != plain.token_ids


def test_a_request_may_bring_its_own_thresholds() -> None:
    engines = serve([prompt(16)], EDIT, settings={"edit_threshold": 0.4})[0]
    own = serve([prompt(16)], EDIT, thresholds={"edit_threshold": 0.4})[0]
    assert own.token_ids == engines.token_ids
    assert own.tokens_edited == engines.tokens_edited
