"""A conversation in a terminal, with a server and with an engine of its own."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import attrs
import httpx
import pytest
from click.testing import CliRunner
from hypothesis import given, strategies as st

from diffulex_core.cli.app import build_cli
from diffulex_core.errors import DiffulexError, InvalidSamplingParams
from diffulex_core.host import Host
from diffulex_serve.chat.links import ChatFailed, InlineLink, Link, RemoteLink
from diffulex_serve.chat.session import Session, help_text
from diffulex_serve.chat.settings import KNOBS, Settings
from diffulex_serve.chat.terminal import ConsoleTerminal, printable
from diffulex_serve.options import SecuritySection, ServeOptions

Q = "Q: Ann has 12 apples, buys 30 more and gives away 7. How many are left?"
ANSWER = "12 + 30 = 42. 42 - 7 = 35. The answer is 35."


@attrs.define
class FakeTerminal:
    """Lines that are typed, and what is shown, by kind."""

    typed: list[str | BaseException]
    live: bool = False
    answers: list[str] = attrs.field(factory=list)
    drafts: list[tuple[str | None, ...]] = attrs.field(factory=list)
    closed: int = 0
    notes: list[str] = attrs.field(factory=list)
    complaints: list[str] = attrs.field(factory=list)

    def read(self) -> str | None:
        line = self.typed.pop(0) if self.typed else None
        if isinstance(line, BaseException):
            raise line
        return line

    def show(self, text: str, draft: Sequence[str | None] = ()) -> None:
        if text:
            self.answers.append(text)
        self.drafts.append(tuple(draft))

    def close(self) -> None:
        self.closed += 1

    def note(self, text: str) -> None:
        self.notes.append(text)

    def complain(self, text: str) -> None:
        self.complaints.append(text)


def end(**fields: Any) -> dict[str, Any]:
    usage = {"completion_tokens": 2, "nfe": 1, "tpf": 2.0, "decode_time": 0.5}
    return {"event": "end", "finish_reason": "stop", "stop_detail": "stop_eos", "usage": usage, **fields}


@attrs.define
class FakeLink:
    """Answers with given events, and remembers what it was asked. An event may be something to do instead."""

    scenes: list[list[Any]]
    asked: list[Mapping[str, Any]] = attrs.field(factory=list)
    left: int = 0

    async def meet(self) -> Mapping[str, Any]:
        return {}

    async def events(self, body: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any], None]:
        self.asked.append(body)
        try:
            for event in self.scenes.pop(0):
                if isinstance(event, Exception):
                    raise event
                if event is signal.SIGINT:
                    os.kill(os.getpid(), event)
                    await asyncio.sleep(30)
                yield event
        finally:
            self.left += 1

    async def close(self) -> None:
        pass


def said(text: str) -> dict[str, Any]:
    return {"event": "block_commit", "text": text}


def talk(link: Link, *typed: str | BaseException, settings: Settings | None = None) -> FakeTerminal:
    terminal = FakeTerminal(list(typed))
    with asyncio.Runner() as runner:
        Session(link, terminal, runner, settings=settings or Settings()).run()
    return terminal


def test_a_server_and_an_engine_answer_alike_as_it_becomes_final(served: Any) -> None:
    transport = httpx.ASGITransport(app=served.app)
    remote = RemoteLink("http://localhost", api_key=None, transport=transport)
    inline = InlineLink(served.client, served.desk.texts, model="tiny/llada")
    for link in (remote, inline):
        terminal = FakeTerminal([Q])
        Session(link, terminal, served.runner, settings=Settings(values={"temperature": 0.0})).run()
        assert "".join(terminal.answers) == ANSWER
        assert len(terminal.answers) > 1
        assert terminal.notes[-1].strip().startswith("17 tokens, 3 forwards, TPF ")
        assert terminal.complaints == []


def test_settings_reach_whoever_answers(served: Any) -> None:
    inline = InlineLink(served.client, served.desk.texts, model="tiny/llada")
    typed = ["/temp 0", "/max 5", "/topk 3", "/topp 0.9", "/iter 40", "/conf 0.95", Q]
    terminal = FakeTerminal([*typed])
    Session(inline, terminal, served.runner, settings=Settings()).run()
    assert ANSWER.startswith("".join(terminal.answers))
    assert terminal.notes[-1].strip().startswith("5 tokens")
    assert terminal.notes[-1].endswith("(length_tokens)")
    long = FakeTerminal(["apples " * 600])
    Session(inline, long, served.runner, settings=Settings()).run()
    assert "tokens" in long.complaints[0]


def test_commands_set_what_is_asked_for_next() -> None:
    link = FakeLink([[said("a"), end()], [said("b"), end()], [said("c"), end()]])
    terminal = talk(
        link,
        "/temp 0.5",
        "/conf 0.8",
        "one",
        "/max 7",
        "/temp default",
        "two",
        "/conf default",
        "/max",
        "three",
        "/temp x",
    )
    kept = [
        {name: body[name] for name in body if name in ("temperature", "thresholds", "max_tokens")}
        for body in link.asked
    ]
    assert kept == [
        {"temperature": 0.5, "thresholds": {"accept_threshold": 0.8}},
        {"thresholds": {"accept_threshold": 0.8}, "max_tokens": 7},
        {"max_tokens": 7},
    ]
    assert "/max is 7." in terminal.notes
    assert "/temp is as the checkpoint recommends." in terminal.notes
    assert terminal.complaints == ["/temp wants a number or 'default', and not 'x'."]


def test_what_was_said_is_remembered_until_it_is_cleared() -> None:
    link = FakeLink([[said("A"), said("B"), end()], [said("C"), end()], [said("D"), end()]])
    talk(link, "one", "two", "/clear", "//three", "/quit", "four")
    told = [[(message["role"], message["content"]) for message in body["messages"]] for body in link.asked]
    assert told == [
        [("user", "one")],
        [("user", "one"), ("assistant", "AB"), ("user", "two")],
        [("user", "/three")],
    ]
    assert all(body["stream_mode"] == "events" for body in link.asked)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in a terminal: what runs in the background of a shell has interrupts switched off."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_stops_the_answer_and_not_the_conversation() -> None:
    link = FakeLink([[said("A"), signal.SIGINT], [signal.SIGINT], [said("B"), end()]])
    leaving = (KeyboardInterrupt(), "", KeyboardInterrupt(), KeyboardInterrupt(), "never read")
    terminal = talk(link, "one", "two", "three", *leaving)
    assert [note.strip() for note in terminal.notes[:2]] == ["Stopped.", "Stopped."]
    told = [message["content"] for message in link.asked[-1]["messages"]]
    assert told == ["one", "A", "three"]  # what has no answer is forgotten
    assert (link.left, terminal.typed) == (3, ["never read"])


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        ([ChatFailed("gone")], "gone"),
        ([{"event": "error", "message": "the model failed", "type": "engine_error"}], "the model failed"),
        ([{"error": {"message": "the server failed"}}], "the server failed"),
        ([said("A")], "has no end"),
    ],
)
def test_a_failure_is_said_and_the_conversation_goes_on(scene: list[Any], words: str) -> None:
    link = FakeLink([scene, [said("fine"), end()]])
    terminal = talk(link, "one", "two")
    assert len(terminal.complaints) == 1
    assert words in terminal.complaints[0]
    assert terminal.answers[-1] == "fine"
    assert len(link.asked[-1]["messages"]) == (3 if scene[0] == said("A") else 1)


def test_help_names_every_command_and_others_are_refused() -> None:
    terminal = talk(FakeLink([]), "/help", "/temperature", "/hlep", "", "   ")
    assert terminal.notes == [help_text()]
    for name in ("help", "clear", "temp", "topk", "topp", "max", "iter", "conf", "quit"):
        assert f"\n/{name} " in f"\n{help_text()}"
    assert "no command /temperature" in terminal.complaints[0]
    assert "help" in terminal.complaints[1]


@given(st.sampled_from(sorted(KNOBS)), st.sampled_from(sorted(KNOBS)), st.text(max_size=8))
def test_a_setting_is_kept_or_refused_and_leaves_the_others(first: str, second: str, text: str) -> None:
    before = Settings().changed(first, "1")
    try:
        after = before.changed(second, text)
    except InvalidSamplingParams:
        return
    value = after.of(second)
    assert text == "default" if value is None else value == KNOBS[second].read(text)
    if first != second:
        assert after.of(first) == 1
    assert before == Settings().changed(first, "1")


@given(st.text())
def test_a_model_cannot_command_the_terminal(text: str) -> None:
    shown = printable(text + "\x1b[2J\x9b1A\r\ud800\n")
    assert shown.endswith("[2J1A\n")
    assert not any((each < " " and each not in "\n\t") or "\x7f" <= each <= "\x9f" for each in shown)
    assert [each for each in text if each.isprintable()] == [
        each for each in shown[: -len("[2J1A\n")] if each.isprintable()
    ]


def test_the_console_shows_pieces_behind_each_other_and_notes_beside_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = ConsoleTerminal()
    assert not terminal.live  # this is no terminal
    for piece in ("[bold]a ", "b\x1b[31m", "c" * 200):
        terminal.show(piece, ["never shown"])
    terminal.close()
    terminal.note("[17 tokens]")
    terminal.complain("wrong\x1b[2J")
    terminal.close()  # without an answer
    shown = capsys.readouterr()
    assert shown.out == "[bold]a b[31m" + "c" * 200 + "\n"
    assert shown.err == "[17 tokens]\nwrong[2J\n"
    typed = iter(["line"])
    prompts = []

    def read(prompt: str) -> str:
        prompts.append(prompt)
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert [terminal.read(), terminal.read()] == ["line", None]
    assert prompts == ["", ""]


def test_characters_that_an_output_cannot_take_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", narrow)
    terminal = ConsoleTerminal()
    terminal.show("über 漢")
    terminal.close()
    assert narrow.buffer.getvalue() == b"?ber ?\n"  # type: ignore[attr-defined]


def test_what_a_server_refuses_is_said(served: Any) -> None:
    locked = served.with_options(ServeOptions(security=SecuritySection(api_key="secret")))
    transport = httpx.ASGITransport(app=locked.app)
    with pytest.raises(ChatFailed, match=r"key is missing or wrong.*--api-key"):
        served.run(RemoteLink("http://localhost", api_key="wrong", transport=transport).meet())
    right = RemoteLink("http://localhost", api_key="secret", transport=transport)
    assert served.run(right.meet())["strategy"] == "d2f"
    terminal = FakeTerminal(["apples " * 600])
    Session(right, terminal, served.runner, settings=Settings()).run()
    assert "tokens" in terminal.complaints[0]


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"<html>", "does not answer as one of diffulex"), (b'data: {"event": "start"}\n\n', "broke off")],
)
def test_a_stranger_behind_the_url_is_told_from_a_server(body: bytes, words: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body))
    terminal = talk(RemoteLink("http://localhost", api_key=None, transport=transport), "hi")
    assert words in terminal.complaints[0]


class Dying(httpx.AsyncByteStream):
    """The body of a stream whose server is gone after one event."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b'data: {"event": "block_commit", "text": "12"}\n\n'
        raise httpx.ReadError("")


def test_a_server_that_dies_is_told_in_one_line_and_what_was_final_is_kept() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content)["messages"])
        if len(asked) == 1:
            return httpx.Response(200, stream=Dying())
        raise httpx.ConnectError("refused")

    asked: list[Any] = []
    terminal = talk(RemoteLink("http://localhost", api_key=None, transport=httpx.MockTransport(answer)), "one", "two")
    assert terminal.answers == ["12"]
    broken, gone = terminal.complaints
    assert broken == "The server at http://localhost broke off its answer. Is it still running?"
    assert gone.startswith("The server at http://localhost does not answer")
    assert "\n" not in gone
    assert [message["content"] for message in asked[1]] == ["one", "12", "two"]


def invoke(*arguments: str, typed: str = "") -> Any:
    host = Host.discover(environ={})
    return CliRunner().invoke(build_cli(host), ["chat", *arguments], obj=host, input=typed)


def test_the_command_talks_to_an_engine_of_its_own() -> None:
    result = invoke("--model", "tiny/llada", "--temperature", "0", typed=f"{Q}\n/max 3\n{Q}\n/quit\n")
    assert result.exit_code == 0, result.output
    assert "tiny/llada (llada, d2f)" in result.output
    assert ANSWER in result.output
    assert "3 tokens" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "http://127.0.0.1:9"], "diffulex serve"),
        (["--url", "localhost:8000"], "does not answer"),
        (["--url", "http://[", "--temperature", "0"], "does not answer"),
        (["--url", "http://a.test", "--model", "tiny/llada"], "--url is for a server"),
        (["--temperature", "-1"], "temperature"),
        (["--model", "tiny/nothing"], "nothing"),
    ],
)
def test_a_conversation_that_cannot_begin_says_why(arguments: list[str], words: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code != 0
    told = str(result.exception) if isinstance(result.exception, DiffulexError) else result.output
    assert words in told
