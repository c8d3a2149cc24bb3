"""Which tokens and which text of an answer may be sent for good."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from diffulex_core.plugin import DiffulexError
from diffulex_core.stop_strings import first_stop, settled
from diffulex_serve.stream.spelling import Spell, Speller


class StreamBroken(DiffulexError, RuntimeError):
    """An answer took back what was told to be final: an error of the engine's, not of the request."""


@attrs.frozen(kw_only=True)
class Commit:
    """A piece of the answer that stays.

    Attributes:
        start: position of its first token.
        token_ids: its tokens; may be none when the text is what the tokens before kept back.
        text: its text. Those of all pieces together are the answer's.
    """

    start: int
    token_ids: tuple[int, ...]
    text: str


class Committer:
    """Takes final tokens in, and gives out what neither a stop string nor an unfinished character can take back."""

    def __init__(self, spell: Spell, stop: Sequence[str]) -> None:
        self._speller = Speller(spell)
        self._stop = stop
        self._tokens: list[int] = []
        self._pieces: list[str] = []
        """Of the tokens that wait, and before them what is left of the last token that was sent."""
        self._sent = 0
        """Tokens that were sent."""
        self._parts: list[str] = []
        """Texts that were sent."""
        self._stopped = False

    @property
    def sent(self) -> int:
        """Tokens that were sent."""
        return self._sent

    def add(self, tokens: Sequence[int]) -> Commit | None:
        """Take in final tokens that follow those before; what may be sent now, None for nothing."""
        self._tokens += tokens
        if not self._pieces:
            self._pieces.append("")
        self._pieces += map(self._speller.add, tokens)
        if self._stopped:
            return None
        waiting = "".join(self._pieces)
        cut = first_stop(waiting, self._stop)
        self._stopped = cut is not None
        text = settled(waiting, self._stop) if cut is None else waiting[:cut]
        return self._send(text) if text else None

    def finish(self, token_ids: Sequence[int], text: str) -> Commit | None:
        """The rest of the answer, given all of its tokens and its text; None when everything was sent.

        Where a tokenizer spells a text otherwise than its beginnings, what was sent counts, and the rest is spelled
        behind it.

        Raises:
            StreamBroken: the answer does not begin with the tokens that were sent.
        """
        if tuple(token_ids[: self._sent]) != tuple(self._tokens[: self._sent]):
            raise StreamBroken("The answer ended with other tokens than those that were final before.")
        sent = self.text
        if text.startswith(sent):
            rest = text[len(sent) :]
        else:
            self._pieces += map(self._speller.add, token_ids[len(self._tokens) :])
            rest = "".join([*self._pieces, self._speller.rest()])
            cut = first_stop(rest, self._stop)
            rest = rest if cut is None else rest[:cut]
        start, self._sent = self._sent, len(token_ids)
        if start == len(token_ids) and not rest:
            return None
        self._parts.append(rest)
        return Commit(start=start, token_ids=tuple(token_ids[start:]), text=rest)

    @property
    def text(self) -> str:
        """Everything that was sent."""
        self._parts = ["".join(self._parts)]
        return self._parts[0]

    def _send(self, text: str) -> Commit:
        """Send a beginning of what waits, and the fewest tokens that hold it."""
        covered, count = len(self._pieces[0]), 0
        while covered < len(text):
            count += 1
            covered += len(self._pieces[count])
        left = self._pieces[count][len(self._pieces[count]) - (covered - len(text)) :]
        self._pieces[: count + 1] = [left]
        start, self._sent = self._sent, self._sent + count
        self._parts.append(text)
        return Commit(start=start, token_ids=tuple(self._tokens[start : self._sent]), text=text)
