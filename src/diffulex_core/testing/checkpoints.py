"""A checkpoint folder without weights: a family's small config.json and a tokenizer made to fit it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from diffulex_core.config.derive import LENGTH_KEYS, VOCABULARY_KEYS, Checkpoint
from diffulex_core.plugin import Capability, ModelFamily
from diffulex_core.testing.check import CheckFailed
from diffulex_core.testing.subjects import FamilySubject

PADDING = 8
"""Ids at the end of a vocabulary that the tokenizer leaves unused, where it is not small and special tokens let it."""
FEWEST = 4
"""Tokens that are nothing special, of which the kit can still make prompts that differ."""


@attrs.frozen(kw_only=True)
class TinyVocabulary:
    """What a small checkpoint's tokenizer knows.

    Attributes:
        size: ids below this are tokens; the rest of the network's vocabulary is padding.
        mask: the mask token's id; None where the family has none.
        eos: ids that end an answer.
    """

    size: int
    mask: int | None
    eos: tuple[int, ...]

    @classmethod
    def of(cls, subject: FamilySubject) -> TinyVocabulary:
        """Read from a family's config.json; a mask token that it does not name is put where the family expects it.

        Raises:
            CheckFailed: the vocabulary is too small.
        """
        checkpoint = Checkpoint(config=subject.config)
        found = checkpoint.look_up(*VOCABULARY_KEYS)
        # A family may call the size something else; its network knows.
        entries = found[1] if found is not None else subject.build(device=torch.device("meta")).vocab_size
        if type(entries) is not int:
            raise CheckFailed(f"the vocabulary of {subject.label}'s tiny config.json has {entries!r} tokens.")
        eos = tuple(_ids(checkpoint.look_up("eos_token_id")))
        mask = _mask(subject.family, checkpoint, entries, eos)
        unused = min(PADDING, entries // 4)
        size = max([entries - unused, *(token + 1 for token in (*eos, *(() if mask is None else (mask,))))])
        vocabulary = cls(size=size, mask=mask, eos=eos)
        if len(vocabulary.plain) < FEWEST:
            raise CheckFailed(
                f"the vocabulary of {subject.label}'s tiny config.json has {entries} ids, {len(vocabulary.plain)} of "
                f"them for tokens that are nothing special; give it at least {FEWEST} of these."
            )
        return vocabulary

    @property
    def plain(self) -> tuple[int, ...]:
        """The tokens that are nothing special."""
        return tuple(token for token in range(self.size) if token != self.mask and token not in self.eos)


def longest(subject: FamilySubject, wanted: int) -> int:
    """`wanted` positions, or as many as the family's config.json allows."""
    found = Checkpoint(config=subject.config).look_up(*LENGTH_KEYS)
    return wanted if found is None or type(found[1]) is not int else min(wanted, found[1])


def write_checkpoint(subject: FamilySubject, folder: Path) -> TinyVocabulary:
    """Write what `Diffulex(folder, load_format="dummy", host=subject.host)` reads.

    Each token is a word, "t0", "t1" and so on, and texts are split at white space.

    Args:
        subject: the family.
        folder: an existing directory.
    Returns:
        What the tokenizer knows.
    """
    vocabulary = TinyVocabulary.of(subject)
    (folder / "config.json").write_text(json.dumps(_plain(subject.config)))
    _write_tokenizer(vocabulary, subject.family, folder)
    return vocabulary


def _write_tokenizer(vocabulary: TinyVocabulary, family: ModelFamily, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    special = {token: f"<|end_{token}|>" for token in vocabulary.eos}
    names = dict[str, str]()
    if vocabulary.eos:
        names["eos_token"] = special[vocabulary.eos[0]]
    if vocabulary.mask is not None:
        names["mask_token"] = special[vocabulary.mask] = family.mask_token or "<|kit_mask|>"
    words = {special.get(token, f"t{token}"): token for token in range(vocabulary.size)}
    tokenizer = Tokenizer(models.WordLevel(vocab=words, unk_token=f"t{vocabulary.plain[0]}"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(names))


def _mask(family: ModelFamily, checkpoint: Checkpoint, vocab_size: int, eos: tuple[int, ...]) -> int | None:
    if Capability.MASK_TOKEN not in family.provides:
        return None
    found = checkpoint.look_up("mask_token_id")
    wanted = found[1] if found is not None else family.defaults.get("mask_token_id")
    if type(wanted) is int and (found is not None or wanted < vocab_size):
        return wanted
    return max(set(range(vocab_size)) - set(eos))


def _ids(found: tuple[str, Any] | None) -> Iterator[int]:
    value = None if found is None else found[1]
    for each in value if isinstance(value, (list, tuple)) else [value]:
        if type(each) is int:
            yield each


def _plain(value: Any) -> Any:
    """Mappings and sequences of any type as JSON has them."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value
