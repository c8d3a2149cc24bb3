"""Broken subjects for the checks of `diffulex_core.testing.checks.kv_cache`."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from diffulex_core.errors import OutOfPages
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.pattern import IntArray
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import kv_cache, kv_cache_books
from diffulex_core.testing.subjects import KVCacheSubject, MakeKVCache
from tests.conformance.mutant import Mutant


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
    """A table is put in order when it grows."""

    def reserve(self, sequence: int, slots: int) -> None:
        super().reserve(sequence, slots)
        state = self._sequences[sequence]
        state.pages[state.published :] = sorted(state.pages[state.published :], reverse=True)


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


class HandsOutItsOwnTable(PagedKVCache):
    """Whoever writes into a page table writes into the cache."""

    def page_table(self, sequence: int) -> IntArray:
        state = self._sequences[sequence]
        tables = vars(self).setdefault("tables", {})
        known = tables.get(sequence)
        if known is None or len(known) != len(state.pages):
            known = tables[sequence] = super().page_table(sequence)
        return known  # type: ignore[no-any-return]


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


def _mutant(name: str, check: AnyCheck, make: MakeKVCache) -> Mutant:
    return Mutant(name=name, check=check, subject=lambda: KVCacheSubject(name="broken", factory=make))


MUTANTS: tuple[Mutant, ...] = (
    _mutant("a release leaks a page", kv_cache_books.check_kv_cache_conserves_pages, LeaksOnRelease),
    _mutant("every tenth release leaks", kv_cache_books.check_kv_cache_conserves_pages, LeaksSometimes),
    _mutant("caches share a page size", kv_cache_books.check_kv_caches_do_not_share_state, SharesThePageSize),
    _mutant("cached pages count as used", kv_cache_books.check_kv_cache_conserves_pages, CountsCachedAsUsed),
    _mutant("cached pages are never reused", kv_cache_books.check_kv_cache_conserves_pages, KeepsCachedPages),
    _mutant(
        "the first who goes frees", kv_cache_books.check_kv_cache_shares_no_page_that_is_written, CountsHoldersOnce
    ),
    _mutant("holders are one too few", kv_cache_books.check_kv_cache_shares_no_page_that_is_written, MissesOneHolder),
    _mutant("a shared page is written", kv_cache_books.check_kv_cache_shares_no_page_that_is_written, SharesOneTooMany),
    _mutant(
        "a failed reserve keeps pages",
        kv_cache_books.check_kv_cache_refuses_a_reservation_whole,
        KeepsWhatItGotBeforeItFailed,
    ),
    _mutant(
        "a failed reserve empties the cache",
        kv_cache_books.check_kv_cache_refuses_a_reservation_whole,
        ForgetsBeforeItFails,
    ),
    _mutant(
        "a reserve that is too large succeeds",
        kv_cache_books.check_kv_cache_refuses_a_reservation_whole,
        NeverOutOfPages,
    ),
    _mutant("a release of nobody is no error", kv_cache_books.check_kv_cache_releases_once, ReleasesQuietly),
    _mutant("a second release frees again", kv_cache_books.check_kv_cache_releases_once, ReleasesTwice),
    _mutant("truncate drops final pages", kv_cache_books.check_kv_cache_truncates_to_what_is_needed, TruncatesTooFar),
    _mutant("truncate drops nothing", kv_cache_books.check_kv_cache_truncates_to_what_is_needed, TruncatesNothing),
    _mutant(
        "truncate drops what is asked for",
        kv_cache_books.check_kv_cache_truncates_to_what_is_needed,
        TruncatesToTheStored,
    ),
    _mutant("page tables are the cache's own", kv_cache_books.check_kv_cache_tables_are_copies, HandsOutItsOwnTable),
    _mutant("caches share texts", kv_cache_books.check_kv_caches_do_not_share_state, SharesTexts),
    _mutant("caches share sequences", kv_cache_books.check_kv_caches_do_not_share_state, SharesSequences),
    _mutant("publishes at reserve", kv_cache.check_kv_cache_publishes_at_commit, PublishesAtReserve),
    _mutant("publishes at release", kv_cache.check_kv_cache_publishes_at_commit, PublishesAtRelease),
    _mutant("publishes the page in flight", kv_cache.check_kv_cache_publishes_at_commit, PublishesInFlight),
    _mutant("shares part of a page", kv_cache.check_kv_cache_publishes_at_commit, SharesPartOfAPage),
    _mutant("keys ignore the page before", kv_cache.check_kv_cache_shares_only_equal_dependencies, KeyWithoutThePast),
    _mutant("keys ignore dependency_end", kv_cache.check_kv_cache_shares_only_equal_dependencies, KeyWithoutTheTail),
    _mutant("keys ignore the scope", kv_cache.check_kv_cache_shares_only_equal_dependencies, KeyWithoutTheScope),
    _mutant("keys miss a token", kv_cache.check_kv_cache_shares_only_equal_dependencies, KeyWithoutTheLastToken),
    _mutant("keys are sums", kv_cache.check_kv_cache_shares_only_equal_dependencies, KeyOfSums),
    _mutant("keys are a byte", kv_cache.check_kv_cache_shares_only_equal_dependencies, KeyIsAByte),
    _mutant("keys cut tokens", kv_cache.check_kv_cache_shares_only_equal_dependencies, KeyOfShortTokens),
    _mutant("published before all is known", kv_cache.check_kv_cache_shares_only_equal_dependencies, PublishesTooEarly),
    _mutant("publishes what it was not told", kv_cache.check_kv_cache_publishes_what_it_is_told_only, PublishesUntold),
    _mutant("insists on all tokens", kv_cache.check_kv_cache_publishes_what_it_is_told_only, InsistsOnTokens),
    _mutant("ignores prefix_caching", kv_cache.check_kv_cache_shares_nothing_where_it_must_not, IgnoresTheSwitch),
    _mutant("shares canvases", kv_cache.check_kv_cache_shares_nothing_where_it_must_not, SharesCanvases),
    _mutant("finds nothing", kv_cache.check_kv_cache_finds_committed_prefixes, FindsNothing),
    _mutant("finds the first page only", kv_cache.check_kv_cache_finds_committed_prefixes, FindsHalf),
    _mutant("forgets at release", kv_cache.check_kv_cache_finds_committed_prefixes, ForgetsTheReleased),
    _mutant("gives cached pages away first", kv_cache.check_kv_cache_finds_committed_prefixes, GivesCachedPagesAway),
    _mutant("keys are the caller's arrays", kv_cache.check_kv_cache_keeps_no_arrays, KeyIsTheCallersArray),
    _mutant("rewritten pages are found", kv_cache.check_kv_cache_survives_any_history, RemembersRewrittenPages),
    _mutant("a table is reordered", kv_cache_books.check_kv_cache_conserves_pages, MovesPages),
    _mutant("the books are said to be wrong", kv_cache.check_kv_cache_survives_any_history, CriesWolf),
    _mutant("holders are counted once", kv_cache.check_kv_cache_survives_any_history, CountsHoldersOnce),
    _mutant("keys are hashes", kv_cache.check_kv_cache_survives_hash_collisions, KeyIsAHash),
    _mutant("keys are checksums", kv_cache.check_kv_cache_survives_hash_collisions, KeyIsAChecksum),
)
