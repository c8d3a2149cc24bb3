"""The tokenizer of the tiny checkpoints: one token per known word and number, bytes for everything else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from diffulex_tiny import problems, wording

EOS = "<|endoftext|>"
MASK = "<|mdm_mask|>"
PATTERN = r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]|\s"


def build_tokenizer(mask: str = MASK) -> Tokenizer:
    """A byte-level BPE without merges whose vocabulary holds whole words (`ignore_merges`).

    Numbers 0..`LARGEST_NUMBER` are single tokens, with and without a leading space; any other text falls back to bytes,
    so no input is unknown and `decode(encode(text)) == text`.

    Args:
        mask: text of the mask token; families call theirs differently, but its id is the same.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def spell(word: str) -> str:
        return "".join(piece for piece, _ in byte_level.pre_tokenize_str(word))

    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += [spell(word) for word in [*number_words(), *story_words()]]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (EOS, mask)])
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that the vocabulary has."""
    found = tokenizer.token_to_id(token)
    assert found is not None, f"the vocabulary has no {token!r}"
    return found


def things(tokenizer: Tokenizer) -> Tensor:
    """[n] int64, the tokens of what the problems count."""
    return torch.tensor([tokenizer.encode(f" {thing}").ids[0] for thing in wording.ITEMS])


def number_words() -> list[str]:
    """Every number token's text: bare 0..`LARGEST_NUMBER`, then the same with a leading space."""
    return [f"{space}{n}" for space in ("", " ") for n in range(problems.LARGEST_NUMBER + 1)]


def story_words() -> list[str]:
    """Every word of the problem generator, in the spellings (with or without leading space) that it can take."""
    phrases = [
        *wording.GAINS, *wording.LOSSES, *wording.PUTS, *wording.TAKES, *wording.ARRIVALS, *wording.SALES,
        *wording.NAMES, *wording.ITEMS,
        "Q: A It shop has have does in the morning evening box now First then and There are a How many left?",
        ". The answer is + - = ,",
    ]  # fmt: skip
    words = sorted({word for phrase in phrases for word in re.findall(r"[A-Za-z]+|[^\sA-Za-z0-9{}]", phrase)})
    return [f" {word}" for word in words] + [word for word in words if word[0].isupper()]


def write_tokenizer(folder: Path, mask: str | None = MASK) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` into `folder`.

    Args:
        mask: text of the mask token; None = the family has none.
    """
    build_tokenizer(mask or MASK).save(str(folder / "tokenizer.json"))
    special = {"eos_token": EOS, "pad_token": EOS} | ({"mask_token": mask} if mask else {})
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1) + "\n")
