"""What a client is told adds up to the answer, however an engine decides it and however slowly it is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.types import Canvas
from diffulex_serve.engine.deltas import CanvasWatch
from diffulex_serve.engine.mailbox import joined
from diffulex_serve.engine.messages import Ended, Load, Logprob, Stepped
from diffulex_serve.engine.wire import decode_events, encode
from diffulex_serve.stream.committing import Commit, Committer, StreamBroken
from diffulex_serve.stream.fold import Fold, Wishes
from diffulex_serve.stream.protocol import Frame
from diffulex_serve.stream.spelling import Speller
from tests.integration.engine_info import INFO

BROKEN = st.sampled_from([*"a é€😀".encode(), 0xFF, 256 + 256 * 0x82 + 0xE2, 256 + 256 * 0xC3 + 0xA9])
"""Tokens of `pair_text`: parts of characters, in no order."""
TEXTS = st.text(st.sampled_from("abc é€😀\n"), max_size=12)


def byte_text(tokens: Sequence[int]) -> str:
    """A tokenizer with one token for each byte."""
    return bytes(tokens).decode("utf-8", errors="replace")


def pair_text(tokens: Sequence[int]) -> str:
    """A tokenizer whose tokens are one or two bytes: `b` or `256 + ...`, so that tokens cross characters."""
    out = b"".join(bytes([t]) if t < 256 else bytes([(t - 256) // 256, (t - 256) % 256]) for t in tokens)
    return out.decode("utf-8", errors="replace")


@st.composite
def tokenized(draw: st.DrawFn) -> tuple[str, list[int]]:
    text = draw(TEXTS)
    data, tokens = text.encode(), []
    at = 0
    while at < len(data):
        if at + 1 < len(data) and draw(st.booleans()):
            tokens.append(256 + 256 * data[at] + data[at + 1])
            at += 2
        else:
            tokens.append(data[at])
            at += 1
    return text, tokens


@given(tokenized())
@settings(max_examples=80)
def test_the_pieces_of_tokens_are_their_text_and_no_piece_holds_half_a_character(
    given_text: tuple[str, list[int]],
) -> None:
    text, tokens = given_text
    speller = Speller(pair_text)
    pieces = [speller.add(token) for token in tokens]
    assert "".join([*pieces, speller.rest()]) == text
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(BROKEN, max_size=90))
@settings(max_examples=80)
def test_bytes_that_are_no_text_do_not_hurt_characters_behind_them(tokens: list[int]) -> None:
    speller = Speller(pair_text)
    assert "".join([*map(speller.add, tokens), speller.rest()]) == pair_text(tokens)


def word_text(tokens: Sequence[int]) -> str:
    """A tokenizer whose tokens are words with a space before, which the first word of a text loses."""
    return "".join(f" {chr(token)}" for token in tokens).removeprefix(" ")


@given(st.lists(st.integers(97, 122), max_size=8))
@settings(max_examples=30)
def test_spaces_between_words_are_told_where_a_text_loses_its_first(tokens: list[int]) -> None:
    speller = Speller(word_text)
    assert "".join(speller.add(token) for token in tokens) == word_text(tokens)


def test_an_incomplete_character_at_the_end_is_told_at_the_end() -> None:
    speller = Speller(byte_text)
    assert [speller.add(byte) for byte in "a€".encode()[:3]] == ["a", "", ""]
    assert speller.rest() == "\ufffd"


def fewest(tokens: Sequence[int], text: str) -> int:
    """The number of leading tokens that hold a text."""
    return next(n for n in range(len(tokens) + 1) if pair_text(tokens[:n]).startswith(text))


@given(tokenized(), st.data())
@settings(max_examples=60)
def test_commits_add_up_to_the_answer_cut_at_its_first_stop_string(
    given_text: tuple[str, list[int]], data: st.DataObject
) -> None:
    whole, tokens = given_text
    stop = data.draw(st.lists(st.text(st.sampled_from("abc é€"), min_size=1, max_size=3), max_size=1))
    if whole and data.draw(st.booleans()):
        begin = data.draw(st.integers(0, len(whole) - 1))
        stop.append(whole[begin : begin + data.draw(st.integers(1, 4))])
    committer = Committer(pair_text, stop)
    commits: list[Commit] = []
    answer, text, told = tokens, whole, 0
    while told < len(tokens):
        size = data.draw(st.integers(1, len(tokens) - told))
        commit = committer.add(tokens[told : told + size])
        commits += [commit] if commit is not None else []
        told += size
        known = pair_text(tokens[:told])
        cuts = [at for at in map(known.find, stop) if at >= 0]
        if cuts and text == whole:  # an answer ends as soon as it holds a stop string, whatever would follow
            text = known[: min(cuts)]
            answer = tokens[: fewest(tokens, text)]
            if data.draw(st.booleans()):
                break
    last = committer.finish(answer, text)
    commits += [last] if last is not None else []
    assert "".join(commit.text for commit in commits) == text == committer.text
    assert [token for commit in commits for token in commit.token_ids] == list(answer)
    assert [commit.start for commit in commits] == [0, *accumulate(len(c.token_ids) for c in commits)][: len(commits)]


def test_a_text_that_is_spelled_otherwise_at_the_end_goes_on_behind_what_was_sent() -> None:
    committer = Committer(byte_text, [])
    assert committer.add([97, 98]) == Commit(start=0, token_ids=(97, 98), text="ab")
    assert committer.finish([97, 98, 99], "aXc") == Commit(start=2, token_ids=(99,), text="c")
    assert committer.text == "abc"


def test_an_answer_that_takes_back_tokens_is_an_error() -> None:
    committer = Committer(byte_text, [])
    committer.add([97, 98])
    with pytest.raises(StreamBroken):
        committer.finish([97, 99], "ac")


@attrs.frozen
class Story:
    """Canvases of an answer, with the number of final tokens after each, and the answer's tokens."""

    canvases: list[Canvas]
    final: list[int]
    answer: tuple[int, ...]


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Blocks that open behind a prompt, fill in any order, are edited and emptied, and become final from the left."""
    size, prompt = draw(st.integers(2, 4)), draw(st.integers(1, 5))
    tokens: list[int] = []
    decided: list[bool] = []
    final = 0
    canvases, finals = [], []
    letters = st.integers(97, 122)
    for _ in range(draw(st.integers(1, 12))):
        if final == len(tokens) or draw(st.integers(0, 3)) == 0:
            grown = size - (prompt + len(tokens)) % size
            tokens += [999] * grown
            decided += [False] * grown
        for at in draw(st.sets(st.integers(final, len(tokens) - 1), max_size=4)) if final < len(tokens) else ():
            if decided[at] and draw(st.integers(0, 4)) == 0:
                tokens[at], decided[at] = 999, False
            else:
                tokens[at], decided[at] = draw(letters), True
        ready = next((at for at, known in enumerate(decided) if not known), len(decided))
        final = draw(st.integers(final, ready)) if final <= ready else final
        canvases.append(
            Canvas(
                start=prompt,
                tokens=np.array(tokens, dtype=np.int64),
                decided=np.array(decided, dtype=np.bool_),
                committed=0,
                block_size=size,
                running_blocks=(),
            )
        )
        finals.append(final)
    ready = next((at for at, known in enumerate(decided) if not known), len(decided))
    return Story(canvases, finals, tuple(tokens[: draw(st.integers(final, ready))]))


def told(story: Story) -> list[Stepped]:
    watch = CanvasWatch(drafts=False)
    steps = []
    for number, (canvas, final) in enumerate(zip(story.canvases, story.final, strict=True)):
        delta = watch.update(canvas)
        steps.append(
            Stepped(
                request_id="r",
                step=number,
                nfe=number + 1,
                opened=delta.opened,
                at=tuple(delta.written.tolist()),
                tokens=tuple(delta.tokens.tolist()),
                confidence=(0.5,) * len(delta.written),
                erased=tuple(delta.erased.tolist()),
                final=final,
                logprobs=tuple(Logprob(logprob=-float(token)) for token in delta.tokens),
            )
        )
    return steps


def fold_of(**wishes: Any) -> Fold:
    ticks = iter(range(10**6))
    return Fold(
        request_id="r",
        info=INFO,
        prompt_tokens=3,
        spell=byte_text,
        stop=(),
        wishes=Wishes(**wishes),
        load=lambda: Load(pages=10, free_pages=5),
        clock=lambda: next(ticks) * 0.1,
    )


def framed(steps: Sequence[Stepped], answer: tuple[int, ...], fold: Fold) -> list[Frame]:
    frames = fold.start()
    for step in steps:
        frames += fold.step(step)
    logprobs = tuple(Logprob(logprob=-float(token)) for token in answer)
    end = Ended(
        request_id="r", reason="stop_eos", token_ids=answer, text=byte_text(answer), nfe=len(steps), logprobs=logprobs
    )
    return frames + fold.end(end)


class Replay:
    """What a client makes of the JSON of the frames, in another way than the server keeps it."""

    def __init__(self) -> None:
        self.canvas: list[int | None] = []
        self.text = ""
        self.committed: list[int] = []
        self.blocks: list[tuple[int, int]] = []

    def take(self, frame: dict[str, Any]) -> None:
        match frame["event"]:
            case "block_open":
                assert frame["start"] == len(self.canvas)
                assert frame["block"] == len(self.blocks)
                self.blocks.append((frame["start"], frame["start"] + frame["len"]))
                self.canvas += [None] * frame["len"]
            case "fill":
                self._write(frame, [None] * len(frame["pos"]), frame["token_ids"])
            case "rewrite":
                assert all(old != new for old, new in zip(frame["old"], frame["new"], strict=True))
                self._write(frame, frame["old"], frame["new"])
            case "remask":
                for at in frame["pos"]:
                    assert self.canvas[at] is not None
                    self.canvas[at] = None
            case "block_commit":
                assert frame["start"] == len(self.committed)
                self.committed += frame["token_ids"]
                self.text += frame["text"]
            case "snapshot":
                assert frame["token_ids"] == self.canvas

    def _write(self, frame: dict[str, Any], old: Sequence[int | None], new: Sequence[int]) -> None:
        first, end = self.blocks[frame["block"]]
        for at, was, token, text in zip(frame["pos"], old, new, frame["text"], strict=True):
            assert first <= at < end
            assert self.canvas[at] == was
            assert text == chr(token)
            self.canvas[at] = token


def as_json(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    return [json.loads(json.dumps(frame.as_json())) for frame in frames]


@given(stories())
@settings(max_examples=80)
def test_replaying_the_events_rebuilds_every_canvas_and_the_commits_are_the_answer(story: Story) -> None:
    fold, replay = fold_of(snapshot_every=2), Replay()
    steps = told(story)
    assert decode_events(encode(steps)) == steps
    seen = [*as_json(fold.start())]
    for step, canvas in zip(steps, story.canvases, strict=True):
        frames = as_json(fold.step(step))
        seen += frames
        for frame in frames:
            replay.take(frame)
        shown = [token if known else None for token, known in zip(canvas.tokens, canvas.decided, strict=True)]
        assert replay.canvas == shown
    end = framed([], story.answer, fold)[1:]
    for frame in as_json(end):
        replay.take(frame)
        seen.append({**frame, "seq": frame["seq"] - 1})
    assert replay.text == byte_text(story.answer) == seen[-1]["text"]
    assert tuple(replay.committed) == story.answer == tuple(seen[-1]["token_ids"])
    assert [frame["seq"] for frame in seen] == list(range(len(seen)))
    assert {frame["v"] for frame in seen} == {1}
    assert [each.logprob for each in fold.logprobs if each is not None] == [-float(token) for token in story.answer]


@given(stories(), st.data())
@settings(max_examples=60)
def test_a_slow_reader_sees_the_same_in_fewer_events(story: Story, data: st.DataObject) -> None:
    steps = told(story)
    merged: list[Stepped] = []
    for step in steps:
        merged = [*merged[:-1], joined(merged[-1], step)] if merged and data.draw(st.booleans()) else [*merged, step]
    replay, frames = Replay(), framed(merged, story.answer, fold_of())
    for frame in as_json(frames):
        replay.take(frame)
    last = story.canvases[-1]
    assert replay.canvas == [t if known else None for t, known in zip(last.tokens, last.decided, strict=True)]
    assert tuple(replay.committed) == story.answer
    assert replay.text == byte_text(story.answer)


@given(stories())
@settings(max_examples=50)
def test_a_client_that_wants_no_detail_gets_what_is_final_alone_without_gaps(story: Story) -> None:
    frames = framed(told(story), story.answer, fold_of(detail="none"))
    assert {frame.body.event for frame in frames} <= {"start", "block_commit", "end"}
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    kinds = {frame.body.event for frame in framed(told(story), story.answer, fold_of(detail="blocks"))}
    assert kinds.isdisjoint({"fill", "rewrite", "remask"})


def straight(blocks: int, size: int = 4) -> tuple[list[Stepped], tuple[int, ...]]:
    """Blocks that are filled one after the other, a token in each step."""
    steps = [
        Stepped(
            request_id="r",
            step=at,
            nfe=at + 1,
            opened=(size,) if at % size == 0 else (),
            at=(at,),
            tokens=(97 + at % 26,),
            confidence=(0.9,),
            final=at + 1,
        )
        for at in range(blocks * size)
    ]
    return steps, tuple(97 + at % 26 for at in range(blocks * size))


def test_the_bytes_of_a_stream_grow_linearly_with_its_tokens() -> None:
    def size(blocks: int) -> int:
        steps, answer = straight(blocks)
        return sum(len(json.dumps(frame.as_json())) for frame in framed(steps, answer, fold_of()))

    short, middle, long = size(20), size(40), size(80)
    assert long - middle < 2.2 * (middle - short)


def test_metrics_come_at_most_twice_a_second() -> None:
    steps, answer = straight(20)
    fold = fold_of()  # whose clock ticks a tenth of a second at every look
    frames = framed(steps, answer, fold)
    told_at = [index for index, frame in enumerate(frames) if frame.body.event == "metrics"]
    assert 2 < len(told_at) <= len(steps) / 4
    assert {frame.as_json()["kv_usage"] for frame in frames if frame.body.event == "metrics"} == {0.5}


def test_drafts_of_a_family_without_masks_are_shown_before_they_are_decided() -> None:
    watch = CanvasWatch(drafts=True)
    canvas = Canvas(
        start=3,
        tokens=np.array([5, 6]),
        decided=np.zeros(2, dtype=np.bool_),
        committed=0,
        block_size=2,
        running_blocks=(),
    )
    assert watch.update(canvas).written.tolist() == [0, 1]
    again = watch.update(attrs.evolve(canvas, tokens=np.array([5, 7]), decided=np.ones(2, dtype=np.bool_)))
    assert (again.written.tolist(), again.tokens.tolist(), again.opened) == ([1], [7], ())


def test_a_canvas_that_loses_its_block_and_gets_it_back_opens_it_once() -> None:
    watch = CanvasWatch(drafts=True)
    canvas = Canvas(
        start=3,
        tokens=np.array([5, 6]),
        decided=np.zeros(2, dtype=np.bool_),
        committed=0,
        block_size=2,
        running_blocks=(),
    )
    assert watch.update(canvas).opened == (2,)
    lost = watch.update(attrs.evolve(canvas, tokens=canvas.tokens[:0], decided=canvas.decided[:0]))
    assert (lost.erased.tolist(), lost.opened) == ([0, 1], ())
    back = watch.update(canvas)
    assert (back.written.tolist(), back.opened) == ([0, 1], ())
