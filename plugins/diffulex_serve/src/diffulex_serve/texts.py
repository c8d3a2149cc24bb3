"""Between text and token ids, on the server's side."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from diffulex_core.plugin import InvalidPrompt
from diffulex_core.tokenizer import decode
from diffulex_serve.stream.spelling import HALF, Spell

T = TypeVar("T")
Message = Mapping[str, str]
"""A message of a conversation: `role` and `content`."""


LONG = 1 << 14
"""Characters from which on a text is long: it may take a tokenizer as long as an answer takes the engine."""


class _Lane:
    """A thread with a tokenizer of its own, which serves one thread at a time."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="diffulex-tokenizer")

    async def run(self, work: Callable[[Any], T]) -> T:
        """What `work` makes of the tokenizer."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._tokenizer)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class Texts:
    """A tokenizer for a server: texts are encoded on threads of their own, and short ones do not wait for long ones."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: a checkpoint's (`LoadedConfig.tokenizer`)."""
        self._decoder = tokenizer
        self._short, self._long = _Lane(tokenizer), _Lane(tokenizer)
        self._alone: dict[int, str] = {}
        self._bare: dict[int, str] = {}

    @property
    def has_template(self) -> bool:
        """Whether the checkpoint says how a conversation is written."""
        return bool(self._decoder.chat_template)

    async def encode(self, text: str) -> list[int]:
        """The token ids of a prompt, with what the tokenizer puts around one.

        Raises:
            InvalidPrompt: it is no text.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidPrompt(f"The prompt is not valid text: character {error.start} is half of a pair.") from error
        return await self._encode(text)

    async def converse(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation, up to where the assistant's next message begins.

        A checkpoint without a chat template is no chat model: a single message is the prompt as it is, and several
        are written as lines of `role: content`.

        Raises:
            InvalidPrompt: the checkpoint's template cannot write this conversation.
        """
        if not self.has_template:
            return await self.encode(plain(messages))
        import jinja2

        given = [dict(message) for message in messages]
        try:
            text = await self._lane(sum(len(message["content"]) for message in messages)).run(
                lambda tokenizer: tokenizer.apply_chat_template(given, add_generation_prompt=True, tokenize=False)
            )
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            raise InvalidPrompt(f"The model's chat template refuses these messages: {error}") from error
        return await self._encode(str(text), add_special_tokens=False)

    def spell(self, *, skip_special_tokens: bool = True) -> Spell:
        """What tells the text of token ids."""
        return lambda tokens: decode(self._decoder, tokens, skip_special_tokens=skip_special_tokens)

    def alone(self, token: int) -> str:
        """A token's own text, special tokens by their names; that of a part of a character holds no half of it."""
        return self._remembered(token, self._alone, skip_special_tokens=False)

    def bare(self, token: int) -> str:
        """The same, but special tokens have no text."""
        return self._remembered(token, self._bare, skip_special_tokens=True)

    def close(self) -> None:
        """End the threads."""
        self._short.close()
        self._long.close()

    def _remembered(self, token: int, known: dict[int, str], *, skip_special_tokens: bool) -> str:
        if token not in known:
            text = decode(self._decoder, [token], skip_special_tokens=skip_special_tokens)
            known[token] = "" if HALF in text else text
        return known[token]

    async def _encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = await self._lane(len(text)).run(
            lambda tokenizer: tokenizer.encode(text, add_special_tokens=add_special_tokens)
        )
        return [int(token) for token in ids]

    def _lane(self, length: int) -> _Lane:
        return self._long if length >= LONG else self._short


def plain(messages: Sequence[Message]) -> str:
    """A conversation without a template."""
    if len(messages) == 1:
        return messages[0]["content"]
    lines = [f"{message['role']}: {message['content']}" for message in messages]
    return "\n".join([*lines, "assistant:"])
