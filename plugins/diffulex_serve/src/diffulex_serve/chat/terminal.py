"""Where a conversation is typed and read."""

from __future__ import annotations

import contextlib
import unicodedata
from typing import Protocol

from rich.console import Console
from rich.text import Text


class Terminal(Protocol):
    """What a conversation needs of a terminal."""

    def read(self) -> str | None:
        """The next line that is typed; None = there is none any more.

        Raises:
            KeyboardInterrupt: the user wants to leave.
        """
        ...

    def write(self, text: str) -> None:
        """Show a piece of an answer behind what was shown before."""
        ...

    def note(self, text: str) -> None:
        """Show lines about the conversation."""
        ...

    def complain(self, text: str) -> None:
        """Show what is wrong."""
        ...


class ConsoleTerminal:
    """The terminal of this process."""

    def __init__(self) -> None:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - lets `input` edit lines and remember them
        self._console = Console(highlight=False)

    def read(self) -> str | None:
        try:
            return input("> ")
        except EOFError:
            return None

    def write(self, text: str) -> None:
        self._console.print(Text(printable(text)), end="", soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(Text(printable(text), style="dim"), soft_wrap=True)

    def complain(self, text: str) -> None:
        self._console.print(Text(printable(text), style="red"), soft_wrap=True)


def printable(text: str) -> str:
    """The text without what would command the terminal; a model may write anything."""
    return "".join(each for each in text if each in "\n\t" or unicodedata.category(each) not in ("Cc", "Cs"))
