"""Released configurations and the special tokens of their tokenizers give the published mask token and all stops."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from diffulex_core.config import resolve
from diffulex_core.errors import ConfigError
from tests.families.subjects import host

PUBLISHED = Path(__file__).parent / "published"
QWEN = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}


@pytest.mark.parametrize(
    ("family", "tokens", "mask", "stops"),
    [
        ("llada", {"<|endoftext|>": 126081, "<|mdm_mask|>": 126336, "<|eot_id|>": 126348}, 126336, (126081, 126348)),
        ("llada2", {"<|endoftext|>": 156892, "<|mask|>": 156895, "<|role_end|>": 156900}, 156895, (156892, 156900)),
        ("dream", {**QWEN, "<|mask|>": 151666}, 151666, (151643, 151645)),
        ("dream", {**QWEN, "<|mask|>": 151666, "<|dlm_pad|>": 151667}, 151666, (151643, 151645, 151667)),
        ("dream_reasoner", QWEN, 151669, (151643, 151645)),
        ("sdar", {**QWEN, "<|MASK|>": 151669}, 151669, (151643, 151645)),
        ("sdar_moe", {**QWEN, "<|MASK|>": 151669}, 151669, (151643, 151645)),
        ("fast_dllm_v2", {**QWEN, "|<MASK>|": 151665}, 151665, (151643, 151645)),
        ("stable_diffcoder", {"<[MASK_TOKEN]>": 5, "<[end_of_sentence]>": 2}, 5, (2,)),
    ],
)
def test_the_mask_and_every_end_of_an_answer_are_known(
    family: str, tokens: Mapping[str, int], mask: int, stops: tuple[int, ...]
) -> None:
    checkpoint = json.loads((PUBLISHED / f"{family}.json").read_text())
    eos = [token for text, token in tokens.items() if text == "<|endoftext|>"]
    config = resolve("released", {}, host=host(), checkpoint=checkpoint, tokenizer_tokens=tokens, tokenizer_eos_ids=eos)
    assert (config.model.mask_token_id, config.model.eos_token_ids) == (mask, stops)


def test_a_tokenizer_that_contradicts_config_json_about_the_mask_token_is_refused() -> None:
    checkpoint = json.loads((PUBLISHED / "llada.json").read_text())
    with pytest.raises(ConfigError, match=r"mask_token_id is 126336 .*the tokenizer's '<[|]mdm_mask[|]>' is 7"):
        resolve("released", {}, host=host(), checkpoint=checkpoint, tokenizer_tokens={"<|mdm_mask|>": 7})
