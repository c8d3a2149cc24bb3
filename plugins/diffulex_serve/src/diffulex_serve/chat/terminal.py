"""Where a conversation is typed and read."""

from __future__ import annotations

import contextlib
import sys
import unicodedata
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.text import Text

from diffulex_serve.chat.live import LiveText

MASK, PLAIN_MASK = "▨", "#"


class Terminal(Protocol):
    """What a conversation needs of a terminal."""

    @property
    def live(self) -> bool:
        """Whether drafts can be shown."""
        ...

    def read(self) -> str | None:
        """The next line that is typed; None = there is none any more.

        Raises:
            KeyboardInterrupt: the user wants something to stop.
        """
        ...

    def show(self, text: str, draft: Sequence[str | None] = ()) -> None:
        """Show a piece of an answer behind what was shown before, and behind that a draft in place of the one before.

        Drafts are texts of tokens that may change, None where there is none yet.
        """
        ...

    def close(self) -> None:
        """End an answer."""
        ...

    def note(self, text: str) -> None:
        """Show lines about the conversation."""
        ...

    def complain(self, text: str) -> None:
        """Show what is wrong."""
        ...


class ConsoleTerminal:
    """The terminal of this process: answers go to its output, all else to its error output."""

    def __init__(self) -> None:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - lets `input` edit lines and remember them
        self._console = Console(highlight=False)
        self._aside = Console(highlight=False, stderr=True)
        self.live = (
            self._console.is_terminal and not self._console.is_dumb_terminal and not self._console.legacy_windows
        )
        self._said = ""
        """Last character of the answer."""
        mask = MASK if self._spelled(MASK) == MASK else PLAIN_MASK
        self._text = LiveText(mask=mask, dim=not self._console.no_color)

    def read(self) -> str | None:
        asking = sys.stdin.isatty() and self._console.is_terminal
        try:
            return input("> " if asking else "")
        except EOFError:
            self._write("\n" if asking else "")
            return None

    def show(self, text: str, draft: Sequence[str | None] = ()) -> None:
        text = self._spelled(printable(text))
        self._said = text[-1:] or self._said
        if self.live:
            size = self._console.size
            shown = [None if piece is None else self._spelled(printable(piece)) for piece in draft]
            text = self._text.show(text, shown, width=size.width, height=size.height)
        self._write(text)

    def close(self) -> None:
        if self.live:
            self._write(self._text.close())
        elif self._said not in ("", "\n"):
            self._write("\n")
        self._said = ""

    def note(self, text: str) -> None:
        self._aside.print(Text(printable(text), style="dim"), soft_wrap=True)

    def complain(self, text: str) -> None:
        self._aside.print(Text(printable(text), style="red"), soft_wrap=True)

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()

    def _spelled(self, text: str) -> str:
        """The text without characters that the output cannot take."""
        encoding = self._console.encoding
        return text.encode(encoding, "replace").decode(encoding)


def printable(text: str) -> str:
    """The text without what would command the terminal; a model may write anything."""
    return "".join(each for each in text if each in "\n\t" or unicodedata.category(each) not in ("Cc", "Cs"))
