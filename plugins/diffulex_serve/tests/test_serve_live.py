"""Answers that are shown in a terminal while they are denoised: what stands on the screen, and when it is drawn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given, strategies as st
from rich.cells import cell_len

from diffulex_serve.chat.canvas import Canvas
from diffulex_serve.chat.links import InlineLink
from diffulex_serve.chat.live import LiveText
from diffulex_serve.chat.session import Session
from diffulex_serve.chat.settings import Settings
from diffulex_serve.chat.terminal import ConsoleTerminal

Q = "Q: Ann has 12 apples, buys 30 more and gives away 7. How many are left?"
ANSWER = "12 + 30 = 42. 42 - 7 = 35. The answer is 35."
MASK = "#"


class Screen:
    """A terminal, as far as is needed: it wraps when there is more to write, and understands four sequences."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.rows: list[list[str]] = [[]]
        self.row = self.column = 0
        self.top = 0
        """First row that can be reached still."""
        self.full = False
        """The last column was written, and the cursor waits there."""

    def write(self, text: str) -> None:
        at = 0
        while at < len(text):
            character = text[at]
            if character == "\x1b":
                end = at + 2
                while text[end].isdigit():
                    end += 1
                self._obey(text[end], int(text[at + 2 : end] or "0"))
                at = end
            elif character == "\r":
                self.column, self.full = 0, False
            elif character == "\n":
                self._next_line()
            else:
                self._put(character)
            at += 1

    def _obey(self, command: str, count: int) -> None:
        if command == "A":
            assert self.row - count >= self.top, "the screen scrolled away what was to be written over"
            self.row -= count
        elif command == "C":
            self.column += count
            assert self.column < self.width
        elif command == "J":
            del self.rows[self.row + 1 :]
            self.rows[self.row] = self._cells(self.row)[: self.column]
        else:
            assert command == "m"
        if command != "m":
            self.full = False

    def _put(self, character: str) -> None:
        cells = cell_len(character)
        if self.full or self.column + cells > self.width:
            self._next_line()
        row = self._cells(self.row)
        row += [" "] * (self.column + cells - len(row))
        row[self.column : self.column + cells] = [character, *[""] * (cells - 1)]
        self.column += cells
        self.full = self.column >= self.width
        if self.full:
            self.column = self.width - 1

    def _next_line(self) -> None:
        self.row, self.column, self.full = self.row + 1, 0, False
        self._cells(self.row)
        self.top = max(self.top, self.row - self.height + 1)

    def _cells(self, row: int) -> list[str]:
        while len(self.rows) <= row:
            self.rows.append([])
        return self.rows[row]

    @property
    def text(self) -> str:
        return "\n".join("".join(row).rstrip() for row in self.rows).rstrip()


def drawn(text: str, width: int) -> str:
    """What a text looks like on a screen that shows nothing else."""
    screen = Screen(width, 10_000)
    screen.write(text)
    return screen.text


PIECES = st.text(st.sampled_from("ab c漢字\n"), max_size=12)
STEPS = st.lists(st.tuples(PIECES, st.lists(st.none() | PIECES, max_size=8)), min_size=1, max_size=6)


@given(STEPS, st.integers(2, 12))
def test_a_screen_shows_what_is_final_and_the_latest_draft(steps: Any, width: int) -> None:
    screen, live, final = Screen(width, 10_000), LiveText(mask=MASK, dim=True), ""
    for text, draft in steps:
        screen.write(live.show(text, draft, width=width, height=10_000))
        final += text
        assert screen.text == drawn(final + "".join(MASK if piece is None else piece for piece in draft), width)
    screen.write(live.close())
    assert screen.text == drawn(final, width)
    assert (screen.column, "".join(screen.rows[screen.row]).strip()) == (0, "")


@given(STEPS, st.integers(2, 12), st.integers(2, 4))
def test_a_draft_larger_than_the_window_never_harms_what_is_final(steps: Any, width: int, height: int) -> None:
    screen, live, final = Screen(width, height), LiveText(mask=MASK, dim=False), ""
    for text, draft in steps:
        screen.write(live.show(text, draft, width=width, height=height))
        final += text
        whole = drawn(final + "".join(MASK if piece is None else piece for piece in draft), width)
        assert whole.startswith(screen.text)
    screen.write(live.close())
    assert screen.text == drawn(final, width)


def test_drafts_are_dim_where_they_may_be() -> None:
    assert LiveText(mask="▨", dim=True).show("a", ["b", None], width=80, height=24) == "a\x1b[2mb▨\x1b[0m"
    assert LiveText(mask="▨", dim=False).show("a", ["b", None], width=80, height=24) == "ab▨"


def test_a_canvas_tells_what_stands_behind_the_final_text() -> None:
    canvas = Canvas()
    drafts = []
    for event in (
        {"event": "block_open", "start": 0, "len": 3},
        {"event": "fill", "pos": [0, 2], "text": ["a", "b"]},
        {"event": "rewrite", "pos": [2], "text": ["c"]},
        {"event": "remask", "pos": [0]},
        {"event": "fill", "pos": [0], "text": ["d"]},
        {"event": "block_commit", "start": 0, "token_ids": [7], "text": "d"},
        {"event": "block_open", "start": 3, "len": 1},
        {"event": "metrics"},
    ):
        canvas.take(event)
        drafts.append(list(canvas.draft))
    assert drafts == [
        [None] * 3,
        ["a", None, "b"],
        ["a", None, "c"],
        [None, None, "c"],
        ["d", None, "c"],
        [None, "c"],
        [None, "c", None],
        [None, "c", None],
    ]


@attrs.define
class Watcher:
    """A terminal that can show drafts, and remembers what it showed."""

    typed: list[str]
    live: bool = True
    shown: list[tuple[str, tuple[str | None, ...]]] = attrs.field(factory=list)
    said: list[str] = attrs.field(factory=list)

    def read(self) -> str | None:
        return self.typed.pop(0) if self.typed else None

    def show(self, text: str, draft: Sequence[str | None] = ()) -> None:
        self.shown.append((text, tuple(draft)))

    def close(self) -> None:
        self.shown.append(("\n", ()))

    def note(self, text: str) -> None:
        self.said.append(text)

    complain = note


@attrs.define
class Paced:
    """Sends events, those of a list at once, and waits between them."""

    scenes: list[list[Mapping[str, Any]]]
    asked: dict[str, Any] = attrs.field(factory=dict)

    async def meet(self) -> Mapping[str, Any]:
        return {}

    async def events(self, body: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any], None]:
        self.asked.update(body)
        for scene in self.scenes:
            for event in scene:
                yield event
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        pass


def test_what_comes_together_is_drawn_together_and_no_draft_is_left() -> None:
    usage = {"completion_tokens": 2, "nfe": 1, "tpf": 2.0, "decode_time": 0.5}
    paced = Paced(
        [
            [{"event": "block_open", "start": 0, "len": 2}, {"event": "fill", "pos": [1], "text": ["b"]}],
            [
                {"event": "fill", "pos": [0], "text": ["a"]},
                {"event": "block_commit", "start": 0, "token_ids": [1, 2], "text": "ab"},
                {"event": "block_open", "start": 2, "len": 1},
            ],
            [{"event": "end", "finish_reason": "stop", "stop_detail": "stop_eos", "usage": usage}],
        ]
    )
    terminal = Watcher(["hi"])
    with asyncio.Runner() as runner:
        Session(paced, terminal, runner, settings=Settings()).run()
    assert terminal.shown == [("", (None, "b")), ("ab", (None,)), ("", ()), ("\n", ())]
    assert (paced.asked["detail"], paced.asked["min_interval_ms"]) == ("tokens", 33)


def test_an_engines_answer_is_seen_being_made(served: Any) -> None:
    link = InlineLink(served.client, served.desk.texts, model="tiny/llada")
    terminal = Watcher([Q])
    Session(link, terminal, served.runner, settings=Settings(values={"thresholds": {"accept_threshold": 0.9999}})).run()
    assert "".join(text for text, _ in terminal.shown) == f"{ANSWER}\n"
    assert terminal.shown[-1] == ("\n", ())
    assert terminal.shown[-2][1] == ()


@pytest.mark.parametrize(
    ("environment", "live", "dim"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_a_terminal_shows_what_it_can(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    environment: Mapping[str, str],
    live: bool,
    dim: bool,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    terminal = ConsoleTerminal()
    assert terminal.live is live
    terminal.show("a", ["b\x1b[2J", None])
    terminal.close()
    shown = capsys.readouterr().out
    assert ("\x1b[2m" in shown) is dim
    screen = Screen(80, 24)
    screen.write(shown)
    assert screen.text == "a"
    assert "[2J" not in shown.replace("b[2J", "")
