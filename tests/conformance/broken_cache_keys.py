"""KV caches that find what they should not, or do not find what they should."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.pattern import IntArray


class WithTokens(PagedKVCache):
    """Remembers every sequence's tokens as they were when it was opened."""

    def open(self, sequence: int, known: IntArray, prompt_len: int) -> int:
        stored = super().open(sequence, known, prompt_len)
        vars(self).setdefault("tokens", {})[sequence] = known.copy()
        return stored

    def publish(self, sequence: int, slots: int) -> None:
        """Make pages findable by those tokens."""
        state = self._sequences[sequence]
        covered = min(slots, len(state.pages) * self._page_size)
        while (key := self._key(state, vars(self)["tokens"][sequence][:covered], state.published)) is not None:
            self._publish(state, key)


class PublishesAtReserve(WithTokens):
    """Pages are findable as soon as they are reserved."""

    def reserve(self, sequence: int, slots: int) -> None:
        super().reserve(sequence, slots)
        if self._prefix_caching:
            self.publish(sequence, slots)


class PublishesAtRelease(WithTokens):
    """Whatever a sequence held is findable once it is released, committed or not."""

    def release(self, sequence: int) -> None:
        if self._prefix_caching:
            self.publish(sequence, 10**6)
        super().release(sequence)


class PublishesInFlight(PagedKVCache):
    """The page behind what is committed is published, too."""

    def commit(self, sequence: int, tokens: IntArray, slots: int) -> None:
        super().commit(sequence, tokens, slots)
        state = self._sequences[sequence]
        covered = min(len(state.pages) * self._page_size, slots + self._page_size)
        if self._prefix_caching and (key := self._key(state, tokens[:covered], state.published)) is not None:
            self._publish(state, key)


class PublishesUntold(WithTokens):
    """Pages are published by the tokens that were known at first, whatever `commit` is told."""

    def commit(self, sequence: int, tokens: IntArray, slots: int) -> None:
        super().commit(sequence, tokens, slots)
        if self._prefix_caching:
            self.publish(sequence, slots)


class InsistsOnTokens(PagedKVCache):
    """A commit that names fewer tokens than slots is refused."""

    def commit(self, sequence: int, tokens: IntArray, slots: int) -> None:
        if len(tokens) < slots:
            raise ValueError("too few tokens")
        super().commit(sequence, tokens, slots)


class WithOtherKeys(PagedKVCache):
    """Keys are what `key` makes of a page: its begin, its end, and the end of what it depends on."""

    def _key(self, state: Any, tokens: IntArray, index: int) -> Any:
        begin, end = index * self._page_size, (index + 1) * self._page_size
        needed = self._pattern.dependency_end(end - 1, state.prompt_len)
        if max(end, needed) > len(tokens):
            return None
        return self.key(state, tokens, begin, end, needed)

    def key(self, state: Any, tokens: IntArray, begin: int, end: int, needed: int) -> Any:
        """The right one."""
        scope = self._pattern.sharing_scope(state.prompt_len)
        return state.entry, scope, tokens[begin:needed].tobytes()


class KeyWithoutThePast(WithOtherKeys):
    """A page's own tokens are its key, whatever stands before them."""

    def key(self, state: Any, tokens: IntArray, begin: int, end: int, needed: int) -> Any:
        return begin, self._pattern.sharing_scope(state.prompt_len), tokens[begin:needed].tobytes()


class KeyWithoutTheTail(WithOtherKeys):
    """What a page depends on behind its own end is not in its key."""

    def key(self, state: Any, tokens: IntArray, begin: int, end: int, needed: int) -> Any:
        return state.entry, self._pattern.sharing_scope(state.prompt_len), tokens[begin:end].tobytes()


class KeyWithoutTheScope(WithOtherKeys):
    """Requests with prompts of other lengths share, too."""

    def key(self, state: Any, tokens: IntArray, begin: int, end: int, needed: int) -> Any:
        return state.entry, tokens[begin:needed].tobytes()


class KeyWithoutTheLastToken(WithOtherKeys):
    """The last token of a page is not in its key."""

    def key(self, state: Any, tokens: IntArray, begin: int, end: int, needed: int) -> Any:
        return state.entry, self._pattern.sharing_scope(state.prompt_len), tokens[begin : needed - 1].tobytes()


class KeyOfSums(WithOtherKeys):
    """The order of a page's tokens is not in its key."""

    def key(self, state: Any, tokens: IntArray, begin: int, end: int, needed: int) -> Any:
        return state.entry, self._pattern.sharing_scope(state.prompt_len), needed, int(tokens[begin:needed].sum())


class KeyIsAByte(WithOtherKeys):
    """A page is known by eight bits of a digest."""

    def key(self, state: Any, tokens: IntArray, begin: int, end: int, needed: int) -> Any:
        digest = zlib.crc32(tokens[begin:needed].tobytes()) % 256
        return state.entry, self._pattern.sharing_scope(state.prompt_len), needed, digest


class KeyOfShortTokens(WithOtherKeys):
    """Tokens are cut to sixteen bits."""

    def key(self, state: Any, tokens: IntArray, begin: int, end: int, needed: int) -> Any:
        short = tokens[begin:needed].astype(np.int16)
        return state.entry, self._pattern.sharing_scope(state.prompt_len), short.tobytes()


class KeyIsAHash(WithOtherKeys):
    """Equal hashes count as equal texts."""

    def key(self, state: Any, tokens: IntArray, begin: int, end: int, needed: int) -> Any:
        return hash((self._pattern.sharing_scope(state.prompt_len), *tokens[:needed].tolist()))


class KeyIsAChecksum(WithOtherKeys):
    """Equal checksums count as equal pages."""

    def key(self, state: Any, tokens: IntArray, begin: int, end: int, needed: int) -> Any:
        return state.entry, self._pattern.sharing_scope(state.prompt_len), zlib.crc32(tokens[begin:needed].tobytes())


class KeyIsTheCallersArray(PagedKVCache):
    """Keys are views of the arrays that were passed in."""

    def _key(self, state: Any, tokens: IntArray, index: int) -> Any:
        key = super()._key(state, tokens, index)
        return None if key is None else _View(key.parent, key.scope, tokens, index * self._page_size, self._page_size)


class _View:
    """A key that looks at its array when it is compared."""

    def __init__(self, parent: int, scope: int, tokens: IntArray, begin: int, size: int) -> None:
        self._rest = (parent, scope, begin, size)
        self._tokens = tokens[begin : begin + size]

    def __hash__(self) -> int:
        return hash(self._rest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _View) and self._rest == other._rest and np.array_equal(self._tokens, other._tokens)


class PublishesTooEarly(PagedKVCache):
    """A page is published although what it depends on behind its end is not stored."""

    def _key(self, state: Any, tokens: IntArray, index: int) -> Any:
        begin, end = index * self._page_size, (index + 1) * self._page_size
        if end > len(tokens):
            return None
        return state.entry, self._pattern.sharing_scope(state.prompt_len), tokens[begin:end].tobytes()


class RemembersRewrittenPages(PagedKVCache):
    """A cached page that is given to somebody else is still found."""

    def _forget(self, page: int) -> None:
        """Nothing is forgotten."""

    def check_integrity(self) -> None:
        """All is well."""


class IgnoresTheSwitch(PagedKVCache):
    """Prefixes are shared whatever `prefix_caching` says."""

    def __init__(self, *, prefix_caching: bool, **settings: Any) -> None:
        super().__init__(prefix_caching=True, **settings)


class SharesCanvases(PagedKVCache):
    """A dependency that never ends counts as one that ends with the page."""

    def _key(self, state: Any, tokens: IntArray, index: int) -> Any:
        end = (index + 1) * self._page_size
        if self._pattern.dependency_end(end - 1, state.prompt_len) > 10**6 and end <= len(tokens):
            return state.entry, tokens[end - self._page_size : end].tobytes()
        return super()._key(state, tokens, index)


class FindsNothing(PagedKVCache):
    """Nothing is ever published."""

    def __init__(self, *, prefix_caching: bool, **settings: Any) -> None:
        super().__init__(prefix_caching=False, **settings)


class ForgetsTheReleased(PagedKVCache):
    """Only pages that are in use are found."""

    def _drop(self, page: int) -> None:
        super()._drop(page)
        if self._references[page] == 0:
            self._forget(page)


class GivesCachedPagesAway(PagedKVCache):
    """Cached pages are reused before those that nobody can find."""

    def _drop(self, page: int) -> None:
        super()._drop(page)
        if self._references[page] == 0:
            self._free.move_to_end(page, last=page not in self._key_of_page)


class CriesWolf(PagedKVCache):
    """check_integrity complains of pages that three sequences hold."""

    def check_integrity(self) -> None:
        super().check_integrity()
        assert max(self._references) < 3, "too many holders"


class FindsHalf(WithOtherKeys):
    """Only the first page of a text is found."""

    def open(self, sequence: int, known: IntArray, prompt_len: int) -> int:
        return super().open(sequence, known[: self._page_size], prompt_len)


class NumbersEntriesByPage(PagedKVCache):
    """The page before is known by its number, and a sequence's first pages are used again first."""

    def release(self, sequence: int) -> None:
        for page in self._sequences.pop(sequence).pages:
            self._drop(page)

    def _publish(self, state: Any, key: Any) -> None:
        self._next_entry = state.pages[state.published] + 1
        super()._publish(state, key)
