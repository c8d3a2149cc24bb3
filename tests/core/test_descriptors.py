"""Descriptors that cannot be meant are refused when they are made, in words that say what to write."""

from __future__ import annotations

from typing import Any

import pytest

from diffulex_core.plugin import DecodingStrategy, ModelFamily, SamplingMode


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"requires": "mask_token"}, r"'mask_token' is one text where names are wanted; give a set, as in \{'mask_to"),
        ({"thresholds": "accept_threshold"}, "one text where names are wanted"),
        ({"thresholds": {"accept"}}, "thresholds holds accept; the thresholds are add_block_threshold, semi_complete"),
        ({"modes": {"wild": {}}}, "the mode 'wild' is {}; give a SamplingMode"),
        ({"modes": {"naive": SamplingMode()}}, "the mode 'naive' is the strategy as it is"),
        ({"modes": {"two words": SamplingMode()}}, "a mode is called 'two words'"),
        ({"presets": ["quick"]}, r"\['quick'\] is not a dict of dicts"),
        ({"presets": {"quick": 3}}, "{'quick': 3} is not a dict of dicts"),
        ({"presets": {"": {}}}, "a preset is called ''; a name is text without white space"),
        ({"presets": {3: {}}}, "a preset is called 3"),
    ],
)
def test_a_strategy_that_cannot_be_meant_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodingStrategy(name="toy", pattern="toy:pattern", **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keys": "wobble"}, "'wobble' is one text"),
        ({"thresholds": {"wobble"}}, "thresholds holds wobble"),
        ({"ignores": {"wobble"}}, "ignores holds wobble"),
        ({"requires": "edit"}, "'edit' is one text"),
    ],
)
def test_a_mode_that_cannot_be_meant_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingMode(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"provides": "edit"}, "'edit' is one text"),
        ({"alias_settings": {"other": "edit"}}, "{'other': 'edit'} is not a dict of dicts"),
        ({"alias_settings": {"another": {}}}, "settings for another, not among the aliases"),
    ],
)
def test_a_family_that_cannot_be_meant_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelFamily(name="toy", build="toy:build", weights="toy:weights", aliases=("other",), **given)
