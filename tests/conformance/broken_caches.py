"""KV caches whose books are wrong, or that serve some for too long."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffulex_core.errors import OutOfPages
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.pattern import IntArray


class LeaksOnRelease(PagedKVCache):
    """The last page of a released sequence is nobody's, and not free."""

    def release(self, sequence: int) -> None:
        del self._sequences[sequence].pages[-1:]
        super().release(sequence)


class LeaksSometimes(PagedKVCache):
    """Every tenth release leaks a page."""

    _released = 0

    def release(self, sequence: int) -> None:
        self._released += 1
        if self._released % 10 == 0:
            del self._sequences[sequence].pages[-1:]
        super().release(sequence)


class RemembersIds(PagedKVCache):
    """A sequence that comes again under its id has stored what it had."""

    def open(self, sequence: int, known: IntArray, prompt_len: int) -> int:
        stored = super().open(sequence, known, prompt_len)
        self._sequences[sequence].stored = max(stored, vars(self).setdefault("gone", {}).get(sequence, 0))
        return stored

    def release(self, sequence: int) -> None:
        vars(self).setdefault("gone", {})[sequence] = self._sequences[sequence].stored
        super().release(sequence)


class TakesNoNegativeIds(PagedKVCache):
    """Ids are indices of a list."""

    def open(self, sequence: int, known: IntArray, prompt_len: int) -> int:
        if sequence < 0:
            raise IndexError(sequence)
        return super().open(sequence, known, prompt_len)


class SharesThePageSize(PagedKVCache):
    """The page size is that of the latest cache of the process."""

    _latest = 0

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        type(self)._latest = settings["page_size"]

    @property
    def page_size(self) -> int:
        return self._latest

    def reserve(self, sequence: int, slots: int) -> None:
        self._page_size = self._latest
        super().reserve(sequence, slots)


class CountsCachedAsUsed(PagedKVCache):
    """Cached pages that nobody uses do not count as free."""

    @property
    def num_free_pages(self) -> int:
        return sum(page not in self._key_of_page for page in self._free)


class KeepsCachedPages(PagedKVCache):
    """Cached pages are never given to somebody else."""

    def reserve(self, sequence: int, slots: int) -> None:
        missing = -(-slots // self._page_size) - len(self._sequences[sequence].pages)
        if missing > sum(page not in self._key_of_page for page in self._free):
            raise OutOfPages("nothing but cached pages")
        super().reserve(sequence, slots)


class CountsHoldersOnce(PagedKVCache):
    """However many hold a page, the first who goes frees it."""

    def _drop(self, page: int) -> None:
        if page in self._free:
            return
        self._references[page] = 1
        super()._drop(page)

    def check_integrity(self) -> None:
        """All is well."""


class MissesOneHolder(PagedKVCache):
    """Whoever finds a page that is in use is not counted."""

    def open(self, sequence: int, known: IntArray, prompt_len: int) -> int:
        stored = super().open(sequence, known, prompt_len)
        for page in self._sequences[sequence].pages:
            self._references[page] = max(1, self._references[page] - 1)
        return stored

    def release(self, sequence: int) -> None:
        for page in self._sequences[sequence].pages:
            self._references[page] = max(1, self._references[page])
        super().release(sequence)

    def check_integrity(self) -> None:
        """All is well."""


class SharesOneTooMany(PagedKVCache):
    """The last page that is found is in the table, and is to be written again."""

    def open(self, sequence: int, known: IntArray, prompt_len: int) -> int:
        state_of = self._sequences
        stored = super().open(sequence, known, prompt_len)
        if stored:
            state_of[sequence].stored -= self._page_size
        return state_of[sequence].stored


class SharesPartOfAPage(PagedKVCache):
    """One more slot than whole pages hold is said to be stored."""

    def open(self, sequence: int, known: IntArray, prompt_len: int) -> int:
        stored = super().open(sequence, known, prompt_len)
        return stored + (stored > 0)


class KeepsWhatItGotBeforeItFailed(PagedKVCache):
    """A reservation that fails keeps the pages that it found."""

    def reserve(self, sequence: int, slots: int) -> None:
        state = self._sequences[sequence]
        try:
            super().reserve(sequence, slots)
        except OutOfPages:
            super().reserve(sequence, (len(state.pages) + len(self._free)) * self._page_size)
            raise


class ForgetsBeforeItFails(PagedKVCache):
    """A reservation that fails has emptied the cache before."""

    def reserve(self, sequence: int, slots: int) -> None:
        try:
            super().reserve(sequence, slots)
        except OutOfPages:
            for page in self._free:
                self._forget(page)
            raise


class NeverOutOfPages(PagedKVCache):
    """When pages run out the table just stays short."""

    def reserve(self, sequence: int, slots: int) -> None:
        covered = (len(self._sequences[sequence].pages) + len(self._free)) * self._page_size
        super().reserve(sequence, min(slots, covered))


class MovesPages(PagedKVCache):
    """A table is turned around when it grows."""

    def reserve(self, sequence: int, slots: int) -> None:
        super().reserve(sequence, slots)
        state = self._sequences[sequence]
        state.pages[state.published :] = state.pages[state.published :][::-1]


class ReleasesQuietly(PagedKVCache):
    """A release of nobody is no error."""

    def release(self, sequence: int) -> None:
        if sequence in self._sequences:
            super().release(sequence)


class ReleasesTwice(PagedKVCache):
    """A second release gives the pages back once more."""

    def release(self, sequence: int) -> None:
        gone = vars(self).setdefault("gone", {})
        if sequence in self._sequences:
            gone[sequence] = list(self._sequences[sequence].pages)
            super().release(sequence)
            return
        for page in gone[sequence]:
            if self._references[page]:
                self._drop(page)
        raise KeyError(sequence)

    def check_integrity(self) -> None:
        """All is well."""


class TruncatesTooFar(PagedKVCache):
    """The page that holds the last slots goes, too."""

    def truncate(self, sequence: int, slots: int) -> None:
        state = self._sequences[sequence]
        super().truncate(sequence, slots)
        if len(state.pages) > 1:
            self._drop(state.pages.pop())


class TruncatesNothing(PagedKVCache):
    """Borrowed pages stay."""

    def truncate(self, sequence: int, slots: int) -> None:
        """Nothing happens."""


class TruncatesToTheStored(PagedKVCache):
    """Everything behind what is stored goes, asked for or not."""

    def truncate(self, sequence: int, slots: int) -> None:
        super().truncate(sequence, self._sequences[sequence].stored)


class TruncatesWhatIsStored(PagedKVCache):
    """Only whole pages count as stored afterwards."""

    def truncate(self, sequence: int, slots: int) -> None:
        super().truncate(sequence, slots)
        state = self._sequences[sequence]
        state.stored = min(state.stored, slots // self._page_size * self._page_size)


class HandsOutItsOwnTable(PagedKVCache):
    """Whoever writes into a page table writes into the cache."""

    def page_table(self, sequence: int) -> IntArray:
        state = self._sequences[sequence]
        tables = vars(self).setdefault("tables", {})
        known = tables.get(sequence)
        if known is None or len(known) != len(state.pages):
            known = tables[sequence] = super().page_table(sequence)
        return known  # type: ignore[no-any-return]


class WritesTablesInPlace(PagedKVCache):
    """What it hands out is the beginning of a row that it writes again."""

    def page_table(self, sequence: int) -> IntArray:
        row = vars(self).setdefault("rows", {}).setdefault(sequence, np.zeros(64, dtype=np.int64))
        pages = super().page_table(sequence)
        row[: len(pages)] = pages
        return row[: len(pages)]  # type: ignore[no-any-return]


class WipesTablesAtRelease(PagedKVCache):
    """Whoever still looks at the table of a sequence that is gone sees nothing in it."""

    def page_table(self, sequence: int) -> IntArray:
        table = super().page_table(sequence)
        vars(self).setdefault("issued", {}).setdefault(sequence, []).append(table)
        return table

    def release(self, sequence: int) -> None:
        super().release(sequence)
        for table in vars(self).setdefault("issued", {}).pop(sequence, []):
            table[:] = -1


_TEXTS: dict[Any, int] = {}
_PAGES: dict[int, int] = {}


class SharesTexts(PagedKVCache):
    """All caches of a process find each other's texts."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._entry_of_key = _TEXTS
        self._page_of_entry = _PAGES

    def check_integrity(self) -> None:
        """All is well."""


_USERS: dict[int, Any] = {}


class SharesSequences(PagedKVCache):
    """All caches of a process have one book of sequences."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._sequences = _USERS
