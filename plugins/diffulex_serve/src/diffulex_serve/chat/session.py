"""A conversation: lines that are typed, commands among them, and answers that are shown while they are made."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from difflib import get_close_matches
from typing import Any

from diffulex_core.plugin import DiffulexError
from diffulex_serve.chat.canvas import Canvas
from diffulex_serve.chat.links import ChatFailed, Link
from diffulex_serve.chat.settings import DEFAULT, KNOBS, Settings
from diffulex_serve.chat.terminal import Terminal

_OTHERS = {
    "help": "Show this.",
    "clear": "Forget the conversation.",
    "quit": "Leave; so does the end of input.",
}
_ESCAPE = "//"
"""Begins a message that begins with a slash."""
_LOOK_EVERY = 1 / 30
"""Seconds between two drafts."""


class Session:
    """A conversation with a link, in a terminal. Answers are made in `runner`'s loop."""

    def __init__(self, link: Link, terminal: Terminal, runner: asyncio.Runner, *, settings: Settings) -> None:
        self._link = link
        self._terminal = terminal
        self._runner = runner
        self._messages: list[dict[str, str]] = []
        self._leaving = False
        """The line before was an interrupt: another one leaves."""
        self.settings = settings

    def run(self) -> None:
        """Talk until the user leaves."""
        while (line := self._typed()) is not None:
            if line.startswith(_ESCAPE):
                self._say(line[1:])
            elif line.startswith("/"):
                name, _, value = line[1:].partition(" ")
                if name == "quit":
                    return
                self._obey(name, value.strip())
            elif line:
                self._say(line)

    def _typed(self) -> str | None:
        """The next line; an interrupt takes back what was typed of it, and a second one in a row leaves."""
        try:
            line = self._terminal.read()
        except KeyboardInterrupt:
            leaving, self._leaving = self._leaving, True
            self._terminal.note("" if leaving else "\nOnce more, or /quit, leaves.")
            return None if leaving else ""
        self._leaving = False
        return None if line is None else line.strip()

    def _obey(self, name: str, value: str) -> None:
        if name in KNOBS:
            self._turn(name, value)
        elif name == "clear":
            self._messages.clear()
            self._terminal.note("The conversation begins anew.")
        elif name == "help":
            self._terminal.note(help_text())
        else:
            close = get_close_matches(name, [*KNOBS, *_OTHERS], n=1)
            hint = f"Did you mean {close[0]!r}?" if close else ""
            self._terminal.complain(f"There is no command /{name}. {hint or '/help lists all.'}")

    def _turn(self, name: str, value: str) -> None:
        if value:
            try:
                self.settings = self.settings.changed(name, value)
            except DiffulexError as error:
                self._terminal.complain(str(error))
                return
        now = self.settings.of(name)
        self._terminal.note(f"/{name} is {'as the checkpoint recommends' if now is None else now}.")

    def _say(self, text: str) -> None:
        """Send a message, show the answer, and remember both; a message without any answer is forgotten."""
        self._messages.append({"role": "user", "content": text})
        told: list[str] = []
        try:
            end = self._runner.run(self._answer(told))
        except KeyboardInterrupt:
            self._terminal.note("Stopped.")
        except DiffulexError as error:
            self._terminal.complain(str(error))
        else:
            self._terminal.note(summary(end))
        if told:
            self._messages.append({"role": "assistant", "content": "".join(told)})
        else:
            self._messages.pop()

    async def _answer(self, told: list[str]) -> Mapping[str, Any]:
        """The event that ends the answer; texts are added to `told` as they become final.

        Raises:
            ChatFailed: there is none.
        """
        live = self._terminal.live
        body = {
            **self.settings.values,
            "messages": list(self._messages),
            "stream": True,
            "stream_mode": "events",
            "detail": "tokens" if live else "none",
            "min_interval_ms": round(_LOOK_EVERY * 1000) if live else 0,
        }
        painter = _Painter(self._terminal)
        try:
            async with aclosing(self._link.events(body)) as events:
                async for event in events:
                    painter.take(event)
                    match event:
                        case {"event": "block_commit", "text": str(text)} if text:
                            told.append(text)
                        case {"event": "end"}:
                            return event
                        case {"event": "error", "message": message} | {"error": {"message": message}}:
                            raise ChatFailed(str(message))
        finally:
            painter.close()
        raise ChatFailed("The answer has no end.")


class _Painter:
    """Shows an answer in a terminal: final text at once, or, where drafts are shown too, both so often."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._canvas = Canvas()
        self._waiting: list[str] = []
        """Final texts that are not shown yet."""
        self._timer: asyncio.TimerHandle | None = None

    def take(self, event: Mapping[str, Any]) -> None:
        self._canvas.take(event)
        match event:
            case {"event": "block_commit", "text": str(text)} if text:
                self._waiting.append(text)
        if self._terminal.live:
            # Not at once: events that come together are shown together.
            self._timer = self._timer or asyncio.get_running_loop().call_later(_LOOK_EVERY, self._paint)
        elif self._waiting:
            self._terminal.show(self._settled())

    def close(self) -> None:
        """Show the rest, and no draft."""
        if self._timer is not None:
            self._timer.cancel()
        self._terminal.show(self._settled())
        self._terminal.close()

    def _paint(self) -> None:
        self._timer = None
        self._terminal.show(self._settled(), self._canvas.draft)

    def _settled(self) -> str:
        text = "".join(self._waiting)
        self._waiting.clear()
        return text


def help_text() -> str:
    """All commands."""
    lines = [(f"/{name} VALUE", knob.help) for name, knob in KNOBS.items()]
    lines += [(f"/{name}", about) for name, about in _OTHERS.items()]
    width = max(len(command) for command, _ in lines) + 2
    listed = "\n".join(f"{command:<{width}}{about}" for command, about in lines)
    return (
        f"{listed}\nWithout a VALUE a command shows what is set, and the value {DEFAULT} is the checkpoint's. "
        f"Ctrl-C stops an answer. A message that begins with a slash is typed with two."
    )


def summary(end: Mapping[str, Any]) -> str:
    """What an answer cost, and why it ended where it was not the model's wish."""
    usage = end["usage"]
    tokens, spent = usage["completion_tokens"], usage["decode_time"]
    speed = f", {tokens / spent:.1f} tokens/s" if spent else ""
    why = "" if end["finish_reason"] == "stop" else f" ({end['stop_detail']})"
    return f"{tokens} tokens, {usage['nfe']} forwards, TPF {usage['tpf']:.2f}{speed}{why}"
