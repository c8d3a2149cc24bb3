"""Tokens that a family knows by their text: found in the tokenizer, and compared with the ids that others name."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from diffulex_core.config import EngineConfig, Origin
from tests.core.config_kit import ALPHA, CHECKPOINT, configure, make_host, problems_of

BARE = {name: value for name, value in CHECKPOINT.items() if name != "mask_token_id"}
KNOWING = attrs.evolve(ALPHA, mask_token="<|mask|>", stop_tokens=("<|end|>", "<|pad|>"), defaults={"mask_token_id": 40})
HOST = make_host(families=(KNOWING,))


def resolved(options: dict[str, object] | None = None, **given: Any) -> EngineConfig:
    return configure(options, **{"host": HOST, **given})


def test_a_mask_token_that_nothing_names_is_found_by_its_text() -> None:
    config = resolved(checkpoint=BARE, tokenizer_tokens={"<|mask|>": 12})
    assert (config.model.mask_token_id, config.origins["mask_token_id"]) == (12, Origin(source="tokenizer"))


def test_the_tokenizers_own_mask_token_comes_before_the_text_and_the_family_last() -> None:
    assert resolved(checkpoint=BARE, tokenizer_mask_id=3).model.mask_token_id == 3
    assert resolved(checkpoint=BARE).model.mask_token_id == 40


@pytest.mark.parametrize(
    "given",
    [
        {"checkpoint": CHECKPOINT},
        {"checkpoint": BARE, "generation_config": {"mask_token_id": 7}},
        {"checkpoint": BARE, "tokenizer_mask_id": 7},
    ],
    ids=["config.json", "generation_config.json", "tokenizer"],
)
def test_an_id_that_means_another_token_is_refused_with_both_ids(given: dict[str, Any]) -> None:
    [problem] = problems_of(host=HOST, tokenizer_tokens={"<|mask|>": 12}, **given)
    assert "mask_token_id is 7" in problem
    assert "the tokenizer's '<|mask|>' is 12" in problem


def test_an_id_that_the_user_gives_is_used_with_a_warning_when_it_means_another_token() -> None:
    config = resolved({"mask_token_id": 7}, tokenizer_tokens={"<|mask|>": 12})
    assert config.model.mask_token_id == 7
    [warning] = config.warnings
    assert "the tokenizer's '<|mask|>' is 12" in warning
    assert "7 is used" in warning


def test_the_familys_id_is_not_used_for_a_tokenizer_without_that_token() -> None:
    [problem] = problems_of(host=HOST, checkpoint=BARE, tokenizer_tokens={"<|other|>": 40})
    assert "mask_token_id is 40 (model family 'alpha'" in problem
    assert "the tokenizer has no '<|mask|>'" in problem


def test_an_id_of_the_checkpoint_needs_no_text() -> None:
    assert resolved(tokenizer_tokens={"<|other|>": 7}).model.mask_token_id == 7
    assert resolved(tokenizer_tokens={"<|mask|>": 7}).model.mask_token_id == 7


def test_stop_tokens_that_the_tokenizer_has_end_answers_beside_the_others() -> None:
    config = resolved(tokenizer_eos_ids=(9,), tokenizer_tokens={"<|pad|>": 5, "<|mask|>": 7})
    assert config.model.eos_token_ids == (2, 5, 9)
    without = {**CHECKPOINT, "eos_token_id": None}
    found = resolved(checkpoint=without, tokenizer_tokens={"<|end|>": 6, "<|mask|>": 7})
    assert (found.model.eos_token_ids, found.origins["eos_token_ids"]) == ((6,), Origin(source="tokenizer"))
    assert resolved({"eos_token_ids": (1,)}, tokenizer_tokens={"<|pad|>": 5}).model.eos_token_ids == (1,)


def test_a_block_size_may_be_called_bd_size() -> None:
    assert resolved(checkpoint={**CHECKPOINT, "bd_size": 16}).decoding.block_size == 16
    [problem] = problems_of(host=HOST, checkpoint={**CHECKPOINT, "bd_size": "16"})
    assert "config.json has bd_size '16'" in problem
