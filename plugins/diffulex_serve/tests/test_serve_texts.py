"""Texts on their way to the engine: who waits for whom."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import attrs

from diffulex_serve.texts import LONG, Texts

WAIT = 20.0


@attrs.define
class SlowWithLongOnes:
    """A tokenizer that ends a long text only when it is let; its copies share the doors."""

    begun: threading.Event = attrs.field(factory=threading.Event)
    go_on: threading.Event = attrs.field(factory=threading.Event)

    def __deepcopy__(self, memo: dict[int, Any]) -> SlowWithLongOnes:
        return SlowWithLongOnes(self.begun, self.go_on)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if len(text) >= LONG:
            self.begun.set()
            assert self.go_on.wait(WAIT)
        return [len(text), int(add_special_tokens)]


def test_a_short_text_does_not_wait_for_a_long_one() -> None:
    tokenizer = SlowWithLongOnes()
    texts = Texts(tokenizer)

    async def both() -> tuple[list[int], bool, list[int]]:
        long = asyncio.create_task(texts.encode("x" * LONG))
        await asyncio.to_thread(tokenizer.begun.wait, WAIT)
        short = await asyncio.wait_for(texts.encode("x" * (LONG - 1)), WAIT)
        waiting = not long.done()
        tokenizer.go_on.set()
        return short, waiting, await long

    try:
        assert asyncio.run(both()) == ([LONG - 1, 1], True, [LONG, 1])
    finally:
        tokenizer.go_on.set()
        texts.close()
