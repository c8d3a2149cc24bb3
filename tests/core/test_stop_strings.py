"""Where strings end an answer: the one that begins first counts, and tokens are cut where the text is."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st
from tokenizers.decoders import ByteFallback

from diffulex_core.pattern import IntArray
from diffulex_core.stop_strings import StopSearch, first_stop, readable, settled, tokens_of

PIECES = ["a", "b", "ab", "ba", "", "é", "\n"]


def text_of(tokens: IntArray) -> str:
    """Of ids into `PIECES`; those past them are the two bytes of a letter, which is unreadable until both are there."""
    data = b"".join(PIECES[token].encode() if token < len(PIECES) else b"\xc3\xa9"[token % 2 :][:1] for token in tokens)
    return data.decode(errors="replace")


@pytest.mark.parametrize(
    ("stop", "at"),
    [(("x",), None), (("c",), 2), (("d", "b"), 1), (("cd", "c"), 2), (("e", "bcd"), 1), (("abcde", "a"), 0)],
)
def test_the_stop_string_that_begins_first_counts_whichever_is_named_first(
    stop: tuple[str, ...], at: int | None
) -> None:
    assert first_stop("abcde", stop) == at
    assert first_stop("abcde", stop[::-1]) == at


@given(st.lists(st.integers(0, len(PIECES) - 1), max_size=12), st.text("ab\né", min_size=1, max_size=3))
def test_the_fewest_tokens_that_hold_the_text_are_kept(ids: list[int], stop: str) -> None:
    tokens = np.array(ids, dtype=np.int64)
    whole = text_of(tokens)
    text = whole[: first_stop(whole, [stop])]
    kept = tokens_of(text, tokens, text_of)
    assert kept.tolist() == ids[: len(kept)]
    assert text_of(kept).startswith(text)
    assert all(not text_of(tokens[:fewer]).startswith(text) for fewer in range(len(kept)))


def test_the_first_byte_of_a_stop_string_is_no_part_of_an_answer() -> None:
    first, second = (next(token for token in (8, 9) if token % 2 == half) for half in (0, 1))
    tokens = np.array([0, first, second, 1])
    assert text_of(tokens) == "aéb"
    assert tokens_of("a", tokens, text_of).tolist() == [0]
    assert tokens_of("aé", tokens, text_of).tolist() == [0, first, second]
    assert tokens_of("", tokens, text_of).tolist() == []


def metaspace(tokens: IntArray) -> str:
    """Words with a space before each but the first, as SentencePiece spells them; some are punctuation."""
    return "".join([" a", " b", "b", ".", " .", "", " ab"][token % 7] for token in tokens.tolist()).removeprefix(" ")


def bytewise(tokens: IntArray) -> str:
    """The bytes of a text as tokens, spelled as `ByteFallback` does; ids count through a fixed text."""
    data = "aé漢😀ab".encode()
    return "".join(ByteFallback().decode([f"<0x{data[token % len(data)]:02X}>" for token in tokens.tolist()]))


def grows(length: int, cuts: list[int]) -> list[int]:
    """Lengths at which tokens are looked at."""
    return [*sorted(cut % (length + 1) for cut in cuts), length]


@given(
    st.sampled_from([text_of, metaspace, bytewise]),
    st.lists(st.integers(0, 8), max_size=60) | st.integers(0, 60).map(lambda length: list(range(length))),
    st.lists(st.text("ab é漢😀.", min_size=1, max_size=4), min_size=1, max_size=2),
    st.lists(st.integers(0, 60), max_size=12),
)
def test_a_stop_string_is_found_as_soon_as_the_whole_text_holds_it(
    spell: Callable[[IntArray], str], ids: list[int], stop: list[str], cuts: list[int]
) -> None:
    search, tokens = StopSearch(stop, spell), np.array(ids, dtype=np.int64)
    for length in grows(len(ids), cuts):
        held = first_stop(spell(tokens[:length]), stop) is not None
        assert search.finds(tokens[:length]) == held
        if held:
            return


def test_a_stop_string_in_a_run_of_bytes_is_found_when_the_last_of_them_makes_it_readable() -> None:
    data = ("x" + 30 * "é").encode()

    def spell(tokens: IntArray) -> str:
        return "".join(ByteFallback().decode([f"<0x{token:02X}>" for token in tokens.tolist()]))

    search, tokens = StopSearch(["xé"], spell), np.frombuffer(data, dtype=np.uint8).astype(np.int64)
    assert not search.finds(tokens[:-1])
    assert search.finds(tokens)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(0, 39), st.integers(0, 8))
def test_a_stop_string_in_a_token_that_was_replaced_is_found(ids: list[int], at: int, token: int) -> None:
    search, tokens = StopSearch(["ab"], text_of), np.array(ids, dtype=np.int64)
    if search.finds(tokens):
        return
    tokens = tokens.copy()
    tokens[at % len(ids)] = token
    assert search.finds(tokens) == (first_stop(text_of(tokens), ["ab"]) is not None)


@pytest.mark.parametrize("length", [200, 2000])
def test_a_step_spells_no_more_of_a_long_answer_than_of_a_short_one(length: int) -> None:
    spelled: list[int] = []

    def spell(tokens: IntArray) -> str:
        spelled.append(len(tokens))
        return "a" * len(tokens)

    search = StopSearch(["stop"], spell)
    assert not search.finds(np.zeros(length, dtype=np.int64))
    spelled.clear()
    assert not search.finds(np.zeros(length + 4, dtype=np.int64))
    assert sum(spelled) <= 60


@given(st.text("aé漢😀\ufffd", max_size=6), st.data())
def test_characters_before_one_that_is_half_there_stay_readable_where_every_byte_is_a_token(
    text: str, data: st.DataObject
) -> None:
    """`ByteFallback` makes nothing of a whole run of bytes whose last character is not complete."""
    ids = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
    decoder = ByteFallback()

    def text_of(tokens: IntArray) -> str:
        return "".join(decoder.decode([f"<0x{token:02X}>" for token in tokens.tolist()]))

    lengths = [*sorted(data.draw(st.sets(st.integers(0, len(ids))))), len(ids)]
    shown = [settled(readable(ids[:length], text_of), ()) for length in lengths]
    assert all(after.startswith(before) for before, after in pairwise([*shown, text]))
    if "\ufffd" not in text:
        lags = [length - len(each.encode()) for each, length in zip(shown, lengths, strict=True)]
        assert max(lags) <= 3


def test_half_a_character_is_no_text_and_one_that_cannot_be_read_is() -> None:
    half = 9
    assert readable(np.array([0, half]), text_of) == "a"
    assert readable(np.array([half, half]), text_of) == ""
    assert readable(np.array([half, 0]), text_of) == "\ufffda"
    assert readable(np.array([], dtype=np.int64), text_of) == ""
