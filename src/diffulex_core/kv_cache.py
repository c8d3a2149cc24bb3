"""Pages: who holds which, which may be shared, and which are free. Pure bookkeeping, no tensors."""

from __future__ import annotations

from array import array
from collections import OrderedDict

import attrs
import numpy as np

from diffulex_core.errors import OutOfPages
from diffulex_core.pattern import AttentionPattern, IntArray

ROOT = 0


@attrs.frozen
class _Key:
    """Identity of a page's content: the entry of the page before it and the tokens that its K/V depend on.

    Entries are numbered and numbers are never used again, so equal keys mean equal prefixes token by token; there is
    no hash that could collide. `tail` holds the tokens past the page that its K/V depend on.
    """

    parent: int
    scope: int
    tokens: bytes
    tail: bytes


@attrs.define
class _Sequence:
    prompt_len: int
    pages: array[int]
    stored: int = 0
    entry: int = ROOT
    """Cache entry of the last page that was looked up or published."""
    published: int = 0
    """Leading pages that are entries of the cache."""


class PagedKVCache:
    """KV cache manager with prefix sharing over fixed-size pages.

    A page joins the cache when `commit` covers it and everything its K/V depend on; from then on it is never written.
    Unused cached pages stay until they are needed for something else, least recently used first and children before
    their parents. All methods cost O(pages touched).
    """

    def __init__(self, *, num_pages: int, page_size: int, pattern: AttentionPattern, prefix_caching: bool) -> None:
        self._page_size = page_size
        self._num_pages = num_pages
        self._pattern = pattern
        self._prefix_caching = prefix_caching
        self._sequences: dict[int, _Sequence] = {}
        self._references = [0] * num_pages
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_pages))
        self._entry_of_key: dict[_Key, int] = {}
        self._page_of_entry: dict[int, int] = {}
        self._key_of_page: dict[int, _Key] = {}
        self._next_entry = ROOT + 1

    @property
    def page_size(self) -> int:
        return self._page_size

    @property
    def num_pages(self) -> int:
        return self._num_pages

    @property
    def num_free_pages(self) -> int:
        return len(self._free)

    @property
    def num_cached_pages(self) -> int:
        """Pages whose content can be found again, in use or free."""
        return len(self._page_of_entry)

    def open(self, sequence: int, known: IntArray, prompt_len: int) -> int:
        """Start `sequence`, taking over shared pages; returns the number of slots that are stored already."""
        if sequence in self._sequences:
            raise KeyError(f"sequence {sequence} is open already")
        state = _Sequence(prompt_len=prompt_len, pages=array("q"))
        self._sequences[sequence] = state
        if self._prefix_caching:
            while (key := self._key(state, known, state.published)) is not None:
                entry = self._entry_of_key.get(key)
                if entry is None:
                    break
                page = self._page_of_entry[entry]
                self._take(page)
                state.pages.append(page)
                state.published += 1
                state.entry = entry
        state.stored = state.published * self._page_size
        return state.stored

    def reserve(self, sequence: int, slots: int) -> None:
        """Grow the page table of `sequence` to cover `slots` slots, or raise OutOfPages and change nothing."""
        state = self._sequences[sequence]
        missing = -(-slots // self._page_size) - len(state.pages)
        if missing > len(self._free):
            raise OutOfPages(f"{missing} pages needed, {len(self._free)} of {self._num_pages} free")
        for _ in range(missing):
            page = next(iter(self._free))
            self._take(page)
            self._forget(page)
            state.pages.append(page)

    def commit(self, sequence: int, tokens: IntArray, slots: int) -> None:
        """Declare K/V of `[0, slots)` final; whole pages whose dependencies are final become shareable."""
        state = self._sequences[sequence]
        if not state.stored <= slots <= len(state.pages) * self._page_size:
            raise ValueError(
                f"commit to {slots} slots, but {state.stored} are stored and {len(state.pages)} pages held"
            )
        state.stored = slots
        if not self._prefix_caching:
            return
        final = tokens[:slots]
        while (state.published + 1) * self._page_size <= slots:
            key = self._key(state, final, state.published)
            if key is None:
                return
            self._publish(state, key)

    def stored(self, sequence: int) -> int:
        return self._sequences[sequence].stored

    def truncate(self, sequence: int, slots: int) -> None:
        """Give back the pages that `[0, slots)` does not need."""
        state = self._sequences[sequence]
        if slots < state.stored:
            raise ValueError(f"truncate to {slots} slots, but {state.stored} are stored")
        kept = -(-slots // self._page_size)
        for page in reversed(state.pages[kept:]):
            self._drop(page)
        del state.pages[kept:]

    def page_table(self, sequence: int) -> IntArray:
        return np.array(self._sequences[sequence].pages)

    def release(self, sequence: int) -> None:
        """Give back all pages of `sequence`; cached ones stay findable until they are reused."""
        state = self._sequences.pop(sequence)
        for page in reversed(state.pages):
            self._drop(page)

    def check_integrity(self) -> None:
        held = [page for state in self._sequences.values() for page in state.pages]
        for page in range(self._num_pages):
            assert self._references[page] == held.count(page), f"page {page}: wrong reference count"
            assert (page in self._free) == (self._references[page] == 0), f"page {page}: free and in use, or neither"
            assert self._references[page] <= 1 or page in self._key_of_page, f"page {page}: shared but not published"
        for key, entry in self._entry_of_key.items():
            assert self._key_of_page.get(self._page_of_entry[entry]) == key, f"entry {entry}: points at another page"
        assert len(self._entry_of_key) == len(self._page_of_entry) == len(self._key_of_page)
        for sequence, state in self._sequences.items():
            assert len(set(state.pages)) == len(state.pages), f"sequence {sequence}: holds a page twice"
            assert state.published * self._page_size <= len(state.pages) * self._page_size

    def _key(self, state: _Sequence, tokens: IntArray, index: int) -> _Key | None:
        """Key of logical page `index`, or None when `tokens` do not cover all that its K/V depend on."""
        begin, end = index * self._page_size, (index + 1) * self._page_size
        needed = self._pattern.dependency_end(end - 1, state.prompt_len)
        if max(end, needed) > len(tokens):
            return None
        return _Key(
            parent=state.entry,
            scope=self._pattern.sharing_scope(state.prompt_len),
            tokens=tokens[begin:end].tobytes(),
            tail=tokens[end:needed].tobytes(),
        )

    def _publish(self, state: _Sequence, key: _Key) -> None:
        """Make the next page of `state` an entry, or swap it for the page that already holds the same content."""
        own = state.pages[state.published]
        entry = self._entry_of_key.get(key)
        if entry is None:
            entry = self._next_entry
            self._next_entry += 1
            self._entry_of_key[key] = entry
            self._page_of_entry[entry] = own
            self._key_of_page[own] = key
        elif (resident := self._page_of_entry[entry]) != own:
            self._take(resident)
            state.pages[state.published] = resident
            self._drop(own)
        state.entry = entry
        state.published += 1

    def _take(self, page: int) -> None:
        if self._references[page] == 0:
            del self._free[page]
        self._references[page] += 1

    def _drop(self, page: int) -> None:
        self._references[page] -= 1
        if self._references[page] == 0:
            self._free[page] = None
            if page not in self._key_of_page:
                self._free.move_to_end(page, last=False)

    def _forget(self, page: int) -> None:
        """Remove a page that is about to be rewritten from the cache."""
        key = self._key_of_page.pop(page, None)
        if key is not None:
            del self._page_of_entry[self._entry_of_key.pop(key)]
