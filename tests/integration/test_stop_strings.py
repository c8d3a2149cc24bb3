"""Stop strings in an engine: where they end an answer, in which forward, and with which tokens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from diffulex_core.engine import Diffulex
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.stop_strings import settled
from diffulex_core.types import CompletionReason
from tests.integration.engines import engine, prompt


def greedy(max_tokens: int, **others: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True, **others})


@pytest.fixture(scope="module")
def ready() -> Iterator[Diffulex]:
    with engine() as made:
        yield made


def test_a_stop_string_is_found_across_a_block_border(ready: Diffulex) -> None:
    plain = ready.generate(prompt(11), greedy(40))[0]
    border = 16 - 11
    before, across = (ready.tokenizer.decode(list(plain.token_ids[:n])) for n in (border - 1, border + 1))
    stop = across[len(before.rstrip("\ufffd")) :]
    assert len(stop) >= 2
    cut = ready.generate(prompt(11), greedy(40, stop=stop))[0]
    assert cut.completion_reason is CompletionReason.STOP_STRING
    assert cut.text == plain.text[: plain.text.index(stop)]
    assert cut.nfe < plain.nfe


def test_an_answer_ends_in_the_forward_that_completes_a_stop_string() -> None:
    by_one_token = 0
    with engine(accept_threshold=1.0, buffer_size=1) as slow:
        for salt in range(4):
            with slow.stream(prompt(11, salt), greedy(24)) as generation:
                texts = ["", *(event.text for event in generation)]
            for step, (before, text) in enumerate(pairwise(texts)):
                stop = text[-1:]
                if stop in before or stop in ("", "\ufffd"):
                    continue
                [cut] = slow.generate([prompt(11, salt)], greedy(24, stop=stop))
                assert cut.nfe == step + 1
                by_one_token += len(text) == len(before) + 1
    assert by_one_token > 0


def test_no_token_of_a_stop_string_stays_in_an_answer(ready: Diffulex) -> None:
    answers = ready.generate([prompt(11, salt) for salt in range(4)], greedy(40))
    cuts = 0
    for salt, plain in enumerate(answers):
        for at in range(1, len(plain.text) - 4, 5):
            stop = plain.text[at : at + 4]
            if "\ufffd" in stop or plain.text.index(stop) != at:
                continue
            [cut] = ready.generate([prompt(11, salt)], greedy(40, stop=stop))
            assert cut.text == plain.text[:at]
            assert ready.tokenizer.decode(list(cut.token_ids), skip_special_tokens=True) == cut.text
            assert cut.token_ids == plain.token_ids[: len(cut.token_ids)]
            cuts += 1
    assert cuts > 3


def test_a_streamed_text_only_grows_and_never_shows_a_part_of_a_stop_string() -> None:
    held_back = 0
    with engine(accept_threshold=1.0, buffer_size=1) as slow:
        for salt in range(4):
            [plain] = slow.generate([prompt(11, salt)], greedy(24))
            stop = plain.text[8:12]
            with slow.stream([prompt(11, salt)], greedy(24, stop=stop)) as stopped:
                shown = [event.text for event in stopped]
            with slow.stream([prompt(11, salt)], greedy(24)) as unstopped:
                freely = [event.text for event in unstopped]
            assert shown[-1] == plain.text[: plain.text.index(stop)]
            assert all(after.startswith(before) for before, after in pairwise(shown))
            assert all(after.startswith(before) for before, after in pairwise(freely))
            held_back += any(mine != free for mine, free in zip(shown, freely, strict=False))
    assert held_back > 0


@pytest.mark.parametrize(
    ("text", "stop", "stays"),
    [
        ("one two", [], "one two"),
        ("one two", ["wo"], "one t"),
        ("one two", ["two three", "o!"], "one "),
        ("one two", ["three"], "one two"),
        ("aab", ["abab"], "a"),
    ],
)
def test_what_may_become_a_stop_string_is_not_settled(text: str, stop: list[str], stays: str) -> None:
    assert settled(text, stop) == stays
