"""Loading a checkpoint's tokenizer without running its code, and finding its special tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffulex_core.checkpoint import read_json_object
from diffulex_core.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FAST_FILE = "tokenizer.json"
SLOW_FILES = ("vocab.json", "merges.txt")
CONFIG = "tokenizer_config.json"
READ_BY_TRANSFORMERS = ("special_tokens_map.json", "added_tokens.json")
"""Checked beforehand, because transformers reads them without saying which one is damaged."""


def load_tokenizer(folder: Path, stand_in: Callable[[str], Any] | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint directory: `tokenizer.json`, else `vocab.json` with `merges.txt`.

    Args:
        folder: the directory.
        stand_in: called with the name of the class that the tokenizer has; gives the class that reads the same files
            where that one exists only as a checkpoint's code, and None for any other.
    Raises:
        CheckpointError: neither exists, or a file is damaged.
    """
    if (folder / FAST_FILE).is_file():
        _check_vocabulary(folder)
        load: Callable[[Path, Mapping[str, Any]], PreTrainedTokenizerBase] = _load_fast
    elif all((folder / name).is_file() for name in SLOW_FILES):
        load = _load_slow
    else:
        looked_for = f"{FAST_FILE}, or {' with '.join(SLOW_FILES)}"
        raise CheckpointError(str(folder), [f"There is no tokenizer: looked for {looked_for}. Download it as well."])
    config = read_json_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    cls = stand_in(str(config.get("tokenizer_class"))) if stand_in is not None and load is _load_slow else None
    if cls is not None:
        load = partial(_load_as, cls)
    for name in READ_BY_TRANSFORMERS:
        if (folder / name).is_file():
            read_json_object(folder / name)
    try:
        return load(folder, {})
    except AttributeError as error:
        # Older transformers take a mapping only, and newer ones write a list.
        extra = config.get("extra_special_tokens")
        if "'list' object has no attribute 'keys'" not in str(error) or not isinstance(extra, list):
            raise
        return load(folder, {"extra_special_tokens": named_tokens(extra)})


def named_tokens(tokens: Iterable[str | Mapping[str, Any]]) -> dict[str, str]:
    """A name for each special token: its words in lower case with `_token`, numbered when two are alike.

    >>> named_tokens(["<|eot_id|>", "<|eot_id|>", "<||>"])
    {'eot_id_token': '<|eot_id|>', 'eot_id_token_2': '<|eot_id|>', 'extra_special_2': '<||>'}
    """
    named: dict[str, str] = {}
    for index, token in enumerate(tokens):
        text = token if isinstance(token, str) else str(token["content"])
        words = re.sub(r"\W", "_", text.strip("<>|")).lower()
        base = f"{words}_token" if words else f"extra_special_{index}"
        name, number = base, 2
        while name in named:
            name, number = f"{base}_{number}", number + 1
        named[name] = text
    return named


def mask_id_from_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The mask token's id, or None: the tokenizer's own, else the one that special_tokens_map.json names.

    Raises:
        CheckpointError: special_tokens_map.json is damaged.
    """
    token = tokenizer.special_tokens_map.get("mask_token")
    if token is None and (folder / "special_tokens_map.json").is_file():
        token = read_json_object(folder / "special_tokens_map.json").get("mask_token")
    if isinstance(token, Mapping):
        token = token.get("content")
    return None if token is None else _id_of(str(token), folder, tokenizer)


def token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The ids of the tokens that were added to the vocabulary, the special ones among them, by their text."""
    return {str(text): int(token) for text, token in tokenizer.get_added_vocab().items()}


def eos_ids_from_tokenizer(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end a text according to the tokenizer: one, or none."""
    if tokenizer.special_tokens_map.get("eos_token") is None:
        return ()
    return (int(tokenizer.eos_token_id),)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
    """The text of token ids; ids that the tokenizer does not have (a padded vocabulary) have no text."""
    known = len(tokenizer)
    text = tokenizer.decode([token for token in ids if 0 <= token < known], skip_special_tokens=skip_special_tokens)
    return str(text)


def _load_fast(folder: Path, overrides: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    # The class is named here because AutoTokenizer would look for it in the checkpoint's own code.
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
        folder, local_files_only=True, **overrides
    )
    return tokenizer


def _load_slow(folder: Path, overrides: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **overrides
        )
    except (OSError, ValueError) as error:
        problem = f"The tokenizer cannot be built without the checkpoint's own code ({error}). Add a {FAST_FILE}."
        raise CheckpointError(str(folder), [problem]) from error
    return tokenizer


def _load_as(cls: type[PreTrainedTokenizerBase], folder: Path, overrides: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = cls.from_pretrained(folder, local_files_only=True, **overrides)
    return tokenizer


def _check_vocabulary(folder: Path) -> None:
    from tokenizers import Tokenizer

    content = read_json_object(folder / FAST_FILE)
    missing = [name for name in ("model", "added_tokens") if name not in content]
    if missing:
        raise CheckpointError(str(folder), [f"{FAST_FILE} has no '{missing[0]}' entry. Download it again."])
    try:
        Tokenizer.from_file(str(folder / FAST_FILE))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(str(folder), [f"{FAST_FILE} is damaged ({error}). Download it again."]) from error


def _id_of(token: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> int | None:
    if (folder / "added_tokens.json").is_file():
        added = read_json_object(folder / "added_tokens.json").get(token)
        if isinstance(added, int):
            return added
    return tokenizer.get_vocab().get(token)
