"""Loading tokenizers without the checkpoint's code, and finding their special tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from diffulex_core.errors import CheckpointError
from diffulex_core.tokenizer import (
    decode,
    eos_ids_from_tokenizer,
    load_tokenizer,
    mask_id_from_tokenizer,
    named_tokens,
    token_ids,
)
from tests.core.checkpoints import EOS_ID, EOT, EOT_ID, MASK, MASK_ID, VOCAB_SIZE, write_tokenizer


def change(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


@given(text=st.text(max_size=20))
def test_text_survives_a_round_trip(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text)
    assert all(0 <= token < VOCAB_SIZE for token in ids)
    if not any(special in text for special in ("<|", "|>")):
        assert decode(tokenizer, ids) == text


@given(ids=st.lists(st.integers(-5, 2**40), max_size=10))
def test_ids_that_the_tokenizer_does_not_have_have_no_text(tokenizer: Any, ids: list[int]) -> None:
    known = [token for token in ids if 0 <= token < VOCAB_SIZE]
    assert decode(tokenizer, ids) == decode(tokenizer, known)


def test_special_tokens_are_left_out_of_the_text_unless_asked_for(tokenizer: Any) -> None:
    ids = [*tokenizer.encode("hi"), MASK_ID, EOS_ID]
    assert decode(tokenizer, ids) == "hi"
    assert decode(tokenizer, ids, skip_special_tokens=False) == f"hi{MASK}<|endoftext|>"


def test_code_that_the_checkpoint_names_is_never_run(folder: Path) -> None:
    (folder / "tokenization_evil.py").write_text("raise SystemExit('this code must not run')")
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_evil.EvilTokenizer", "tokenization_evil.EvilTokenizer"]},
    )
    (folder / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}')
    assert load_tokenizer(folder).encode("a") != []


def test_a_list_of_extra_special_tokens_is_accepted(folder: Path) -> None:
    change(folder / "tokenizer_config.json", extra_special_tokens=[EOT])
    assert load_tokenizer(folder).convert_tokens_to_ids(EOT) == EOT_ID


class OlderTransformers:
    """`from_pretrained` of versions that take extra special tokens as a mapping only."""

    def __init__(self, message: str) -> None:
        self.message = message
        self.seen: list[object] = []
        self.load = PreTrainedTokenizerFast.from_pretrained

    def __call__(self, folder: Path, **options: Any) -> Any:
        self.seen.append(options.get("extra_special_tokens"))
        if not isinstance(options.get("extra_special_tokens"), Mapping):
            raise AttributeError(self.message)
        return self.load(folder, **options)


def test_where_a_list_is_refused_the_tokens_get_names_and_loading_is_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(folder / "tokenizer_config.json", extra_special_tokens=[EOT])
    older = OlderTransformers("'list' object has no attribute 'keys'")
    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", older)
    assert load_tokenizer(folder).convert_tokens_to_ids(EOT) == EOT_ID
    assert older.seen == [None, {"eot_id_token": EOT}]


@pytest.mark.parametrize(
    ("message", "extra"), [("something else", [EOT]), ("'list' object has no attribute 'keys'", None)]
)
def test_any_other_failure_is_not_swallowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, message: str, extra: list[str] | None
) -> None:
    change(folder / "tokenizer_config.json", extra_special_tokens=extra)
    older = OlderTransformers(message)
    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", older)
    with pytest.raises(AttributeError, match=message):
        load_tokenizer(folder)
    assert len(older.seen) == 1


def test_names_of_tokens_are_their_words_numbered_when_alike() -> None:
    tokens = ["<|eot_id|>", "<role>", {"content": "<|role|>"}, "<|x y-z|>", "<||>", "<|>", "<|role|>"]
    assert named_tokens(tokens) == {
        "eot_id_token": "<|eot_id|>",
        "role_token": "<role>",
        "role_token_2": "<|role|>",
        "x_y_z_token": "<|x y-z|>",
        "extra_special_4": "<||>",
        "extra_special_5": "<|>",
        "role_token_3": "<|role|>",
    }


def test_a_checkpoint_without_tokenizer_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"looked for tokenizer\.json, or vocab\.json with merges\.txt"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": {}}'),
        ("tokenizer.json", '{"model": {}, "added_tokens": []}'),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("special_tokens_map.json", "{"),
        ("added_tokens.json", "[]"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=name):
        load_tokenizer(folder)


def test_a_tokenizer_json_alone_is_enough(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").unlink()
    assert decode(load_tokenizer(folder), load_tokenizer(folder).encode("abc")) == "abc"


def test_vocabulary_and_merges_without_tokenizer_json_are_enough(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    assert load_tokenizer(tmp_path).encode("abb") == [2, 1]


def test_a_tokenizer_that_exists_only_as_code_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenization_own.py").write_text("raise SystemExit('this code must not run')")
    auto_map = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": auto_map}))
    with pytest.raises(CheckpointError, match=r"Add a tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_another_class_may_read_the_files_of_one_that_exists_only_as_code(tmp_path: Path) -> None:
    alphabet = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    (tmp_path / "vocab.json").write_text(json.dumps({**alphabet, "he": 256}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\n")
    (tmp_path / "tokenization_own.py").write_text("raise SystemExit('this code must not run')")
    tokens = {257: "<|endoftext|>", 258: "<|mask|>"}
    special = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    config = {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
        "added_tokens_decoder": {str(token): {"content": text, **special} for token, text in tokens.items()},
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path, {"OwnTokenizer": Qwen2Tokenizer}.get)
    assert tokenizer.encode("he<|mask|>") == [256, 258]
    assert decode(tokenizer, tokenizer.encode("hé, \n x")) == "hé, \n x"
    assert token_ids(tokenizer) == {"<|endoftext|>": 257, "<|mask|>": 258}
    assert (mask_id_from_tokenizer(tmp_path, tokenizer), eos_ids_from_tokenizer(tokenizer)) == (258, (257,))


def test_a_tokenizer_json_needs_no_class(folder: Path) -> None:
    assert load_tokenizer(folder, pytest.fail).convert_tokens_to_ids(EOT) == EOT_ID


def test_the_mask_token_is_the_tokenizers_own(folder: Path) -> None:
    assert mask_id_from_tokenizer(folder, load_tokenizer(folder)) == MASK_ID


@pytest.mark.parametrize("entry", [MASK, {"content": MASK, "lstrip": False}])
def test_a_mask_that_only_special_tokens_map_names_is_found(folder: Path, entry: object) -> None:
    tokenizer = without_mask(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"mask_token": entry}))
    assert mask_id_from_tokenizer(folder, tokenizer) == MASK_ID


def test_added_tokens_decide_the_id_of_a_mask_that_the_vocabulary_lacks(folder: Path) -> None:
    tokenizer = without_mask(folder)
    (folder / "special_tokens_map.json").write_text('{"mask_token": "<new>"}')
    assert mask_id_from_tokenizer(folder, tokenizer) is None
    (folder / "added_tokens.json").write_text('{"<new>": 777}')
    assert mask_id_from_tokenizer(folder, tokenizer) == 777


def test_a_tokenizer_without_mask_has_none(folder: Path) -> None:
    assert mask_id_from_tokenizer(folder, without_mask(folder)) is None


def without_mask(folder: Path) -> Any:
    change(folder / "tokenizer_config.json", mask_token=None)
    (folder / "special_tokens_map.json").unlink()
    return load_tokenizer(folder)


def test_the_end_of_text_is_the_tokenizers_own_or_none(folder: Path) -> None:
    assert eos_ids_from_tokenizer(load_tokenizer(folder)) == (EOS_ID,)
    change(folder / "tokenizer_config.json", eos_token=None)
    change(folder / "special_tokens_map.json", eos_token=None)
    assert eos_ids_from_tokenizer(load_tokenizer(folder)) == ()
