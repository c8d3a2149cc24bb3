"""A conversation: lines that are typed, commands among them, and answers that are shown as they become final."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from difflib import get_close_matches
from typing import Any

from diffulex_core.plugin import DiffulexError
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


class Session:
    """A conversation with a link, in a terminal. Answers are made in `runner`'s loop."""

    def __init__(self, link: Link, terminal: Terminal, runner: asyncio.Runner, *, settings: Settings) -> None:
        self._link = link
        self._terminal = terminal
        self._runner = runner
        self._messages: list[dict[str, str]] = []
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
        try:
            line = self._terminal.read()
        except KeyboardInterrupt:
            return None
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
            self._terminal.note(f"\n{summary(end)}")
        except KeyboardInterrupt:
            self._terminal.note("\nStopped.")
        except DiffulexError as error:
            self._terminal.complain(f"{chr(10) * bool(told)}{error}")
        if told:
            self._messages.append({"role": "assistant", "content": "".join(told)})
        else:
            self._messages.pop()

    async def _answer(self, told: list[str]) -> Mapping[str, Any]:
        """The event that ends the answer; texts are added to `told` as they are shown.

        Raises:
            ChatFailed: there is none.
        """
        body = {
            **self.settings.values,
            "messages": list(self._messages),
            "stream": True,
            "stream_mode": "events",
            "detail": "none",
        }
        async with aclosing(self._link.events(body)) as events:
            async for event in events:
                match event:
                    case {"event": "block_commit", "text": str(text)} if text:
                        told.append(text)
                        self._terminal.write(text)
                    case {"event": "end"}:
                        return event
                    case {"event": "error", "message": message} | {"error": {"message": message}}:
                        raise ChatFailed(str(message))
        raise ChatFailed("The answer has no end.")


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
