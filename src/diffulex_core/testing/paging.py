"""A KV cache at work over a shadow memory, which knows for each slot what its K/V were computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import attrs
import numpy as np

from diffulex_core.errors import OutOfPages
from diffulex_core.pattern import AttentionPattern
from diffulex_core.protocols import KVCacheManager
from diffulex_core.testing.check import CheckFailed
from diffulex_core.testing.patience import patience
from diffulex_core.testing.subjects import MakeKVCache

Content = tuple[object, ...]
"""What a slot's K/V were computed from: the position, every token that they depend on, and what those saw in turn."""


@attrs.define
class OpenSequence:
    """What is known of one open sequence.

    Attributes:
        tokens: from position 0 on.
        prompt_len: leading tokens that are prompt.
        final: what each position's final K/V are computed from; None where that never ends.
        stored: slots that are committed, or were found.
        table: its pages as they were seen last.
    """

    tokens: tuple[int, ...]
    prompt_len: int
    final: list[Content | None]
    stored: int
    table: list[int]


class Paging:
    """A cache, its pages as a shadow, and what is open; every method raises `CheckFailed` where a rule is broken."""

    def __init__(
        self,
        make: MakeKVCache,
        pattern: AttentionPattern,
        *,
        num_pages: int = 12,
        page_size: int | None = None,
        prefix_caching: bool = True,
        reuses_ids: bool = False,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`around` is entered for each call; with `reuses_ids` a sequence takes the id of one that is gone.

        Requests that lost their pages come back under their own id.
        """
        self.pattern = pattern
        self.page_size = page_size or pattern.block_size
        self._around = around
        with around():
            self.cache, self._ids = cache_of(
                make, num_pages=num_pages, page_size=self.page_size, pattern=pattern, prefix_caching=prefix_caching
            )
        self.num_pages = num_pages
        self.prefix_caching = prefix_caching
        self.memory: list[Content] = [("never written", slot) for slot in range(self._ids * self.page_size)]
        self.sequences: dict[int, OpenSequence] = {}
        self._reuses_ids = reuses_ids
        self._gone: list[int] = []
        self._next = 0
        self._garbage = 0

    def open(self, tokens: Sequence[int], prompt_len: int, known: int | None = None) -> int:
        """Start a sequence of which the first `known` tokens may be served from the cache; returns its id."""
        number = self._new_id()
        known_tokens = np.array(tokens[:known], dtype=np.int64)
        hit = int(self._call("open()", lambda: self.cache.open(number, known_tokens, prompt_len)))
        self.sequences[number] = OpenSequence(
            tokens=tuple(tokens),
            prompt_len=prompt_len,
            final=final_contents(tokens, prompt_len, self.pattern),
            stored=hit,
            table=[],
        )
        self._look(number)
        if hit % self.page_size or not 0 <= hit <= len(known_tokens):
            raise CheckFailed(
                f"open() with {len(known_tokens)} known tokens says that {hit} slots are stored; expected a multiple "
                f"of the page size {self.page_size} that the known tokens cover. {self}"
            )
        return number

    def reserve(self, number: int, slots: int) -> bool:
        """Ask for pages; False where there are too few, and then nothing may have changed."""
        missing = -(-slots // self.page_size) - len(self.sequences[number].table)
        before, enough = self.seen(), missing <= self.free()
        try:
            self._call("reserve()", lambda: self.cache.reserve(number, slots))
        except OutOfPages:
            if enough:
                raise CheckFailed(
                    f"reserve() of {max(0, missing)} more pages raised OutOfPages, and {self.free()} are in nobody's "
                    f"table. Pages that are cached but unused are there to be taken. {self}"
                ) from None
            if self.seen() != before:
                raise CheckFailed(
                    f"a reserve() that raised OutOfPages changed what the cache says from {before} to {self.seen()}. "
                    "Look whether there are enough pages before taking the first."
                ) from None
            return False
        if not enough:
            raise CheckFailed(f"reserve() of {missing} pages succeeded, and {self.free()} were free. {self}")
        held = list(self.sequences[number].table)
        self._look(number)
        table = self.sequences[number].table
        if len(table) * self.page_size < slots:
            raise CheckFailed(f"after reserve({slots}) the page table covers {len(table)} pages of {self.page_size}.")
        if table[: len(held)] != held:
            raise CheckFailed(
                f"reserve() changed the pages that the sequence had from {held} to {table[: len(held)]}; they hold K/V."
            )
        return True

    def execute(self, number: int, end: int, in_flight: int = 0) -> None:
        """A forward: final K/V below `end`, and K/V that nobody may rely on for some slots behind them."""
        sequence = self.sequences[number]
        covered = len(sequence.table) * self.page_size
        for position in range(sequence.stored, min(end, covered)):
            content = sequence.final[position]
            assert content is not None, "what depends on an endless future is never final"
            self.memory[self._slot(number, position)] = content
        for position in range(end, min(covered, end + in_flight)):
            self.scribble(self._slot(number, position))

    def commit(self, number: int, slots: int, told: int | None = None) -> None:
        """Declare K/V of `[0, slots)` final; of the tokens the cache is told the first `told`."""
        sequence = self.sequences[number]
        tokens = np.array(sequence.tokens[:told], dtype=np.int64)
        self._call("commit()", lambda: self.cache.commit(number, tokens, slots))
        sequence.stored = slots
        self._look(number)

    def store(self, number: int, slots: int) -> bool:
        """Reserve, execute and commit."""
        if not self.reserve(number, slots):
            return False
        self.execute(number, slots)
        self.commit(number, slots)
        return True

    def truncate(self, number: int, slots: int) -> None:
        """Give back what `[0, slots)` does not need."""
        kept = self.sequences[number].table[: -(-slots // self.page_size)]
        self._call("truncate()", lambda: self.cache.truncate(number, slots))
        self._look(number)
        if self.sequences[number].table != kept:
            raise CheckFailed(
                f"truncate() to {slots} slots left the pages {self.sequences[number].table}; expected {kept}, which "
                "those slots need."
            )

    def release(self, number: int) -> None:
        """End a sequence."""
        self._call("release()", lambda: self.cache.release(number))
        del self.sequences[number]
        self._gone.append(number)

    def take_everything(self) -> None:
        """Somebody takes every free page, scribbles over them and goes away."""
        number = self.open((), 1)
        if self.reserve(number, self.free() * self.page_size):
            for page in self.sequences[number].table:
                for slot in range(page * self.page_size, (page + 1) * self.page_size):
                    self.scribble(slot)
        self.release(number)

    def scribble(self, slot: int) -> None:
        """Write something that means nothing."""
        self._garbage += 1
        self.memory[slot] = ("written in flight", self._garbage)

    def free(self) -> int:
        """Pages that are in nobody's table."""
        return self.num_pages - len({page for each in self.sequences.values() for page in each.table})

    def seen(self) -> object:
        """What the cache says of itself."""
        return self.cache.num_free_pages, {
            number: (self.cache.stored(number), self.cache.page_table(number).tolist()) for number in self.sequences
        }

    def verify(self) -> None:
        """All rules that hold at all times."""
        for number in self.sequences:
            self._look(number)
        self.counted()
        self.private()
        self.sound()
        with patience("check_integrity()"):
            self.cache.check_integrity()

    def sound(self) -> None:
        """K/V of all slots that count as stored are there, computed from this sequence's tokens and nothing else."""
        for number, sequence in self.sequences.items():
            if (said := self.cache.stored(number)) != sequence.stored:
                raise CheckFailed(f"stored({number}) is {said}; {sequence.stored} slots were found or committed.")
            if len(sequence.table) * self.page_size < sequence.stored:
                raise CheckFailed(f"{sequence.stored} slots are stored, and the table has {len(sequence.table)} pages.")
            for position in range(sequence.stored):
                found, wanted = self.memory[self._slot(number, position)], sequence.final[position]
                if found != wanted:
                    raise CheckFailed(
                        f"sequence {number} counts {sequence.stored} slots as stored. Slot {position} (page "
                        f"{sequence.table[position // self.page_size]}) must hold K/V computed from {_told(wanted)}, "
                        f"and holds K/V computed from {_told(found)}. {self}"
                    )

    def counted(self) -> None:
        """Every page is in a table or free, and no table holds one twice."""
        for number, sequence in self.sequences.items():
            if strange := [page for page in sequence.table if not 0 <= page < self._ids]:
                raise CheckFailed(f"sequence {number} holds pages {strange}; there are {self._ids}.")
            if len(set(sequence.table)) != len(sequence.table):
                raise CheckFailed(f"sequence {number} holds a page twice: {sequence.table}.")
        if self.cache.num_free_pages != self.free():
            raise CheckFailed(
                f"{self.num_pages - self.free()} of {self.num_pages} pages are in a page table, so {self.free()} are "
                f"free; num_free_pages is {self.cache.num_free_pages}. {self}"
            )

    def private(self) -> None:
        """A page that its sequence may still write is in no other table."""
        holders: dict[int, list[int]] = {}
        for number, sequence in self.sequences.items():
            for page in sequence.table:
                holders.setdefault(page, []).append(number)
        for number, sequence in self.sequences.items():
            for page in sequence.table[sequence.stored // self.page_size :]:
                if len(holders[page]) > 1:
                    raise CheckFailed(
                        f"page {page} is in the tables of sequences {holders[page]}, and sequence {number} has stored "
                        f"{sequence.stored} slots only, so it will write the page. Share pages that are committed as a "
                        f"whole. {self}"
                    )

    def __str__(self) -> str:
        return f"[{self.num_pages} pages of {self.page_size}, {self.pattern}]"

    def _call(self, what: str, act: Callable[[], int | None]) -> int:
        with patience(what), self._around():
            return act() or 0

    def _new_id(self) -> int:
        if self._reuses_ids and self._gone:
            return self._gone.pop()
        number, self._next = self._next, self._next + 1
        # Second sequences of guided requests have negative ids.
        return ~number if number % 3 == 2 else number

    def _look(self, number: int) -> None:
        with patience("page_table()"):
            self.sequences[number].table = self.cache.page_table(number).tolist()

    def _slot(self, number: int, position: int) -> int:
        page = self.sequences[number].table[position // self.page_size]
        return page * self.page_size + position % self.page_size


def cache_of(
    make: MakeKVCache, *, num_pages: int, page_size: int, pattern: AttentionPattern, prefix_caching: bool
) -> tuple[KVCacheManager, int]:
    """A cache that has `num_pages` pages to give, and the number of pages that were made for it.

    The two differ where a cache keeps some for itself, as a page that padding may write to.
    """
    with patience("the cache's factory"):
        cache = make(num_pages=num_pages, page_size=page_size, pattern=pattern, prefix_caching=prefix_caching)
        made = 2 * num_pages - cache.num_pages
        if made > num_pages:
            cache = make(num_pages=made, page_size=page_size, pattern=pattern, prefix_caching=prefix_caching)
    if (cache.num_pages, cache.page_size) != (num_pages, page_size):
        raise CheckFailed(
            f"a cache made for {made} pages of {page_size} says that it has {cache.num_pages} of {cache.page_size}."
        )
    return cache, made


def final_contents(tokens: Sequence[int], prompt_len: int, pattern: AttentionPattern) -> list[Content | None]:
    """What the final K/V of each position are computed from; None where that is more than there is."""
    ends = [pattern.dependency_end(position, prompt_len) for position in range(len(tokens))]
    return [
        (position, tuple(tokens[:end]), tuple(ends[:end])) if end <= len(tokens) else None
        for position, end in enumerate(ends)
    ]


def _told(content: Content | None) -> str:
    if content is None or isinstance(content[0], str):
        return f"nothing that counts ({content})"
    position, tokens, ends = content
    return f"position {position} over tokens {tokens} that see up to {ends}"
