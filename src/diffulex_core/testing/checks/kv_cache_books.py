"""Checks of KV caches: who holds which page, and that the books balance."""

from __future__ import annotations

from diffulex_core.pattern import AttentionPattern, BlockCausal, FullPrefix, IntArray
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.paging import Paging
from diffulex_core.testing.patience import patience
from diffulex_core.testing.subjects import KVCacheSubject

_PATTERNS: tuple[AttentionPattern, ...] = (BlockCausal(block_size=4), FullPrefix(block_size=4))
_ZEROS, _ONES = (0,) * 24, (1,) * 24


@check(KVCacheSubject)
def check_kv_cache_conserves_pages(subject: KVCacheSubject, effort: Effort) -> None:
    """A page is in page tables or free, none is lost and none is counted twice; cached pages that nobody uses are free.

    Why: a page that leaks is gone until the engine is restarted; one that is handed out twice is written by two.
    Fix: `num_free_pages` is `num_pages` less the pages that stand in some open sequence's table, each counted once; a
    reservation may take any of them, cached ones included.
    """
    for pattern in _PATTERNS:
        for prefix_caching in (True, False):
            paging = Paging(subject.factory, pattern, num_pages=12, prefix_caching=prefix_caching)
            paging.verify()
            for _ in range(3):
                first, second = paging.open(_ZEROS, 8), paging.open(_ONES, 6)
                paging.store(first, 12)
                paging.reserve(second, 5)
                paging.verify()
                paging.reserve(second, 23)
                third = paging.open(_ZEROS, 8)
                paging.verify()
                paging.release(first)
                paging.verify()
                paging.release(second)
                paging.verify()
                paging.release(third)
                paging.verify()
                paging.take_everything()
                paging.verify()
        paging = Paging(subject.factory, pattern, num_pages=12, reuses_ids=True)
        for number in range(40):
            texts = tuple(int(number >> bit & 1) for bit in range(6)) * 4
            sequence = paging.open(texts, 3 + number % 9)
            paging.store(sequence, 4 * (1 + number % 6))
            if number % 3:
                paging.reserve(sequence, 24)
            if number % 4 == 0:
                paging.truncate(sequence, paging.sequences[sequence].stored)
            paging.verify()
            paging.release(sequence)
            paging.verify()


@check(KVCacheSubject)
def check_kv_cache_shares_no_page_that_is_written(subject: KVCacheSubject, effort: Effort) -> None:
    """Sequences that share a prefix write pages of their own, and a shared page stays until its last holder is gone.

    Why: whoever decodes writes K/V in every forward; if that page is in another table, the other reads them.
    Fix: share only pages below what is committed, count who holds each of them, and take pages that nobody holds for
    `reserve`.
    """
    for pattern in _PATTERNS:
        paging = Paging(subject.factory, pattern, num_pages=16)
        first = paging.open(_ZEROS, 8)
        paging.store(first, 8)
        texts = [(*_ZEROS[:8], *([which] * 16)) for which in range(3)]
        followers = [paging.open(text, 8) for text in texts]
        for number in followers:
            paging.reserve(number, 16)
            paging.execute(number, 12, 4)
            paging.verify()
        for number in followers:
            paging.commit(number, 12)
            paging.verify()
        paging.release(first)
        paging.verify()
        paging.take_everything()
        paging.verify()
        for number in followers[:-1]:
            paging.release(number)
            paging.verify()
            paging.take_everything()
            paging.verify()


@check(KVCacheSubject)
def check_kv_cache_refuses_a_reservation_whole(subject: KVCacheSubject, effort: Effort) -> None:
    """A reservation that finds too few pages raises OutOfPages and changes nothing, not even what can be found.

    Why: the scheduler tries, preempts somebody and tries again. Pages that a failed attempt keeps belong to nobody, and
    cached texts that it throws away must be computed again, every time.
    Fix: compare the pages that are missing with the free ones before taking the first.
    """
    for pattern in _PATTERNS:
        paging = Paging(subject.factory, pattern, num_pages=8)
        gone, holder, asker = paging.open(_ZEROS, 8), paging.open(_ONES, 8), paging.open((2,) * 24, 8)
        paging.store(gone, 16)
        paging.release(gone)
        paging.reserve(holder, 12)
        paging.reserve(asker, 4)
        found = _found(paging)
        for slots in (24, 40, 4000):
            if paging.reserve(asker, slots):
                raise CheckFailed(f"reserve() of {slots} slots succeeded with 8 pages of 4.")
            paging.verify()
            if (still := _found(paging)) != found:
                raise CheckFailed(
                    f"before a reserve() that failed {found} slots of a cached text were found, now {still}."
                )
        paging.reserve(asker, 20)
        paging.verify()


def _found(paging: Paging) -> int:
    number = paging.open(_ZEROS, 8)
    found = paging.sequences[number].stored
    paging.release(number)
    return found


@check(KVCacheSubject)
def check_kv_cache_releases_once(subject: KVCacheSubject, effort: Effort) -> None:
    """`release` gives all pages of a sequence back; of one that is not open it raises KeyError and changes nothing.

    Why: a second release, as after an abort, would free pages that somebody else holds by then.
    Fix: forget the sequence in `release`, drop one reference of each of its pages, and raise KeyError for unknown ids.
    """
    for pattern in _PATTERNS:
        paging = Paging(subject.factory, pattern, num_pages=8)
        first = paging.open(_ZEROS, 8)
        paging.store(first, 8)
        second = paging.open(_ZEROS, 8)
        paging.release(first)
        third = paging.open(_ONES, 8)
        paging.reserve(third, 12)
        for number in (first, 4711):
            before = paging.seen()
            try:
                with patience("release()"):
                    paging.cache.release(number)
            except KeyError:
                pass
            else:
                raise CheckFailed(f"release({number}) of a sequence that is not open raised no KeyError.")
            if paging.seen() != before:
                raise CheckFailed(f"release() of a sequence that is not open changed {before} to {paging.seen()}.")
            paging.verify()
        paging.release(second)
        paging.release(third)
        if paging.cache.num_free_pages != 8:
            raise CheckFailed(f"every sequence is released, and {paging.cache.num_free_pages} of 8 pages are free.")


@check(KVCacheSubject)
def check_kv_cache_truncates_to_what_is_needed(subject: KVCacheSubject, effort: Effort) -> None:
    """`truncate` gives back exactly the pages behind the given slots, and keeps what is stored and findable.

    Why: a sparse cache borrows pages for one step. If too few come back others wait for ever; if one too many goes, the
    sequence's own final K/V are overwritten.
    Fix: keep `ceil(slots / page_size)` pages, drop a reference of each of the others, and leave `stored` alone.
    """
    for pattern in _PATTERNS:
        for slots, kept in ((8, 2), (9, 3), (12, 3), (13, 4), (24, 6), (40, 6)):
            paging = Paging(subject.factory, pattern, num_pages=10)
            first = paging.open(_ZEROS, 8)
            paging.store(first, 8)
            paging.reserve(first, 24)
            paging.truncate(first, slots)
            if len(paging.sequences[first].table) != kept:
                raise CheckFailed(
                    f"truncate({slots}) left {len(paging.sequences[first].table)} pages of 4, not {kept}."
                )
            paging.verify()
            paging.take_everything()
            paging.verify()
            paging.reserve(first, 24)
            paging.execute(first, 24)
            paging.commit(first, 24)
            paging.verify()
        paging = Paging(subject.factory, pattern, num_pages=10)
        first = paging.open(_ZEROS, 8)
        paging.store(first, 6)
        paging.reserve(first, 24)
        paging.truncate(first, 6)
        paging.verify()


@check(KVCacheSubject)
def check_kv_cache_tables_are_copies(subject: KVCacheSubject, effort: Effort) -> None:
    """A page table is a copy: writing into it changes nothing, and it stays as it is whatever its sequence does next.

    Sequences grow, give pages back and take others, and go; others come.

    Why: plans carry page tables to workers while the cache goes on.
    Fix: return a new int64 array from `page_table` each time; no part of an array that the cache writes to.
    """
    paging = Paging(subject.factory, _PATTERNS[0], num_pages=10)
    issued = list[tuple[IntArray, list[int]]]()

    def issue(number: int, slots: int) -> None:
        paging.reserve(number, slots)
        table = paging.cache.page_table(number)
        issued.append((table, table.tolist()))

    def require_unchanged(after: str) -> None:
        for table, before in issued:
            if table.tolist() != before:
                raise CheckFailed(
                    f"a page table that was handed out changed from {before} to {table.tolist()} when {after}."
                )

    number = paging.open(_ZEROS, 8)
    issue(number, 8)
    paging.store(number, 16)
    require_unchanged("its sequence grew")
    issue(number, 24)
    paging.truncate(number, 16)
    other = paging.open(_ONES, 6)
    issue(other, 8)
    require_unchanged("its sequence gave pages back and another one took some")
    issue(number, 24)
    require_unchanged("its sequence took other pages than those that it gave back")
    paging.release(number)
    issue(paging.open(_ONES[::-1], 6), 12)
    require_unchanged("its sequence was released and another one came")
    fresh = paging.cache.page_table(other)
    before = fresh.tolist()
    if fresh.flags.writeable:
        fresh[:] = 9
    if paging.cache.page_table(other).tolist() != before:
        raise CheckFailed("writing into a page table that was handed out changed the cache's own.")
    paging.verify()


@check(KVCacheSubject)
def check_kv_caches_do_not_share_state(subject: KVCacheSubject, effort: Effort) -> None:
    """Two caches in one process know nothing of each other's sequences, pages and texts.

    Why: replicas and engines have memory of their own: a text that another one stored is not in this one's pages.
    Fix: keep everything in the instance; look for mutable class attributes, default arguments and module globals.
    """
    pair = [Paging(subject.factory, pattern, num_pages=10 + 2 * at) for at, pattern in enumerate(_PATTERNS)]
    pair.append(Paging(subject.factory, _PATTERNS[0], num_pages=10, page_size=8))
    pair.append(Paging(subject.factory, _PATTERNS[0], num_pages=10))
    for paging in pair:
        number = paging.open(_ZEROS, 8)
        if paging.sequences[number].stored:
            raise CheckFailed("a new cache finds a text that was stored in another one.")
        paging.store(number, 12)
        for other in pair:
            other.verify()
    for paging in pair:
        for number in list(paging.sequences):
            paging.release(number)
        paging.take_everything()
        for other in pair:
            other.verify()


CHECKS: tuple[AnyCheck, ...] = (
    check_kv_cache_conserves_pages,
    check_kv_cache_releases_once,
    check_kv_cache_truncates_to_what_is_needed,
    check_kv_cache_refuses_a_reservation_whole,
    check_kv_cache_tables_are_copies,
    check_kv_caches_do_not_share_state,
    check_kv_cache_shares_no_page_that_is_written,
)
