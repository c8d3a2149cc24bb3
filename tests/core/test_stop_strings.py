"""Where strings end an answer: the one that begins first counts, and tokens are cut where the text is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st
from tokenizers.decoders import ByteFallback

from diffulex_core.pattern import IntArray
from diffulex_core.stop_strings import first_stop, readable, settled, tokens_of

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
