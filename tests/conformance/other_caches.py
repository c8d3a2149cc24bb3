"""KV caches that are right and unlike the core's: the kit must not complain of them."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from diffulex_core.errors import OutOfPages
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.pattern import AttentionPattern, IntArray


class PlainCache:
    """Pages in lists, and no sharing at all; it takes pages two at a time where it can."""

    def __init__(self, *, num_pages: int, page_size: int, pattern: AttentionPattern, prefix_caching: bool) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages))
        self._tables: dict[int, list[int]] = {}
        self._stored: dict[int, int] = {}

    @property
    def num_free_pages(self) -> int:
        return len(self._free)

    def open(self, sequence: int, known: IntArray, prompt_len: int) -> int:
        self._tables[sequence] = []
        self._stored[sequence] = 0
        return 0

    def reserve(self, sequence: int, slots: int) -> None:
        table = self._tables[sequence]
        missing = -(-slots // self.page_size) - len(table)
        if missing <= 0:
            return
        if missing > len(self._free):
            raise OutOfPages("too few pages")
        for _ in range(min(missing + missing % 2, len(self._free))):
            table.append(self._free.pop())

    def commit(self, sequence: int, tokens: IntArray, slots: int) -> None:
        self._stored[sequence] = slots

    def stored(self, sequence: int) -> int:
        return self._stored[sequence]

    def truncate(self, sequence: int, slots: int) -> None:
        kept = -(-slots // self.page_size)
        self._free += self._tables[sequence][kept:]
        del self._tables[sequence][kept:]

    def page_table(self, sequence: int) -> IntArray:
        return np.array(self._tables[sequence], dtype=np.int64)

    def release(self, sequence: int) -> None:
        self._free += self._tables.pop(sequence)
        del self._stored[sequence]

    def check_integrity(self) -> None:
        held = [page for table in self._tables.values() for page in table]
        assert sorted(held + self._free) == list(range(self.num_pages))


class TextCache(PlainCache):
    """Finds pages by the whole text before them, under a checksum that it does not trust."""

    def __init__(self, *, num_pages: int, page_size: int, pattern: AttentionPattern, prefix_caching: bool) -> None:
        super().__init__(num_pages=num_pages, page_size=page_size, pattern=pattern, prefix_caching=prefix_caching)
        self._pattern = pattern
        self._shares = prefix_caching
        self._prompts: dict[int, int] = {}
        self._found: dict[int, list[tuple[Any, int]]] = {}

    @property
    def num_free_pages(self) -> int:
        return self.num_pages - len({page for table in self._tables.values() for page in table})

    def open(self, sequence: int, known: IntArray, prompt_len: int) -> int:
        super().open(sequence, known, prompt_len)
        self._prompts[sequence] = prompt_len
        table = self._tables[sequence]
        while self._shares and (page := self._lookup(self._text(sequence, known, len(table)))) is not None:
            table.append(page)
        self._stored[sequence] = len(table) * self.page_size
        return self._stored[sequence]

    def reserve(self, sequence: int, slots: int) -> None:
        table = self._tables[sequence]
        missing = -(-slots // self.page_size) - len(table)
        used = {page for other in self._tables.values() for page in other}
        cached = {page for entries in self._found.values() for _, page in entries}
        free = [page for page in range(self.num_pages) if page not in used]
        free.sort(key=lambda page: page in cached)
        if missing > len(free):
            raise OutOfPages("too few pages")
        for page in free[: max(0, missing)]:
            table.append(page)
            for entries in self._found.values():
                entries[:] = [entry for entry in entries if entry[1] != page]

    def commit(self, sequence: int, tokens: IntArray, slots: int) -> None:
        super().commit(sequence, tokens, slots)
        for index, page in enumerate(self._tables[sequence]):
            text = self._text(sequence, tokens[:slots], index)
            if text is None or not self._shares:
                return
            if self._lookup(text) is None:
                self._found.setdefault(zlib.crc32(repr(text).encode()), []).append((text, page))

    def truncate(self, sequence: int, slots: int) -> None:
        del self._tables[sequence][-(-slots // self.page_size) :]

    def release(self, sequence: int) -> None:
        del self._tables[sequence], self._stored[sequence], self._prompts[sequence]

    def check_integrity(self) -> None:
        """Nothing is counted, so nothing can be counted wrongly."""

    def _text(self, sequence: int, tokens: IntArray, index: int) -> Any:
        """Everything that a page's K/V depend on; None where some of it is not known."""
        prompt_len, end = self._prompts[sequence], (index + 1) * self.page_size
        needed = max(end, *(self._pattern.dependency_end(at, prompt_len) for at in range(end)))
        if needed > len(tokens):
            return None
        return end, self._pattern.sharing_scope(prompt_len), tuple(tokens[:needed].tolist())

    def _lookup(self, text: Any) -> int | None:
        entries = self._found.get(zlib.crc32(repr(text).encode()), [])
        return next((page for known, page in entries if known == text), None)


class KeepsOnePage(PagedKVCache):
    """Its last page is for rows of padding."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._free.popitem()
        self._references.pop()
        self._num_pages -= 1
