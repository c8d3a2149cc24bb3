"""Broken subjects for the checks of `diffulex_core.testing.checks.kv_cache`."""

from __future__ import annotations

from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import kv_cache, kv_cache_books
from diffulex_core.testing.subjects import KVCacheSubject, MakeKVCache
from tests.conformance.broken_cache_keys import (
    CriesWolf,
    FindsHalf,
    FindsNothing,
    ForgetsTheReleased,
    GivesCachedPagesAway,
    IgnoresTheSwitch,
    InsistsOnTokens,
    KeyIsAByte,
    KeyIsAChecksum,
    KeyIsAHash,
    KeyIsTheCallersArray,
    KeyOfShortTokens,
    KeyOfSums,
    KeyWithoutTheLastToken,
    KeyWithoutThePast,
    KeyWithoutTheScope,
    KeyWithoutTheTail,
    PublishesAtRelease,
    PublishesAtReserve,
    PublishesInFlight,
    PublishesTooEarly,
    PublishesUntold,
    RemembersRewrittenPages,
    SharesCanvases,
)
from tests.conformance.broken_caches import (
    CountsCachedAsUsed,
    CountsHoldersOnce,
    ForgetsBeforeItFails,
    HandsOutItsOwnTable,
    KeepsCachedPages,
    KeepsWhatItGotBeforeItFailed,
    LeaksOnRelease,
    LeaksSometimes,
    MissesOneHolder,
    MovesPages,
    NeverOutOfPages,
    ReleasesQuietly,
    ReleasesTwice,
    RemembersIds,
    SharesOneTooMany,
    SharesPartOfAPage,
    SharesSequences,
    SharesTexts,
    SharesThePageSize,
    TakesNoNegativeIds,
    TruncatesNothing,
    TruncatesTooFar,
    TruncatesToTheStored,
)
from tests.conformance.mutant import Mutant


def _mutant(name: str, check: AnyCheck, make: MakeKVCache) -> Mutant:
    return Mutant(name=name, check=check, subject=lambda: KVCacheSubject(name="broken", factory=make))


MUTANTS: tuple[Mutant, ...] = (
    _mutant("a release leaks a page", kv_cache_books.check_kv_cache_conserves_pages, LeaksOnRelease),
    _mutant("every tenth release leaks", kv_cache_books.check_kv_cache_conserves_pages, LeaksSometimes),
    _mutant("ids are remembered", kv_cache_books.check_kv_cache_conserves_pages, RemembersIds),
    _mutant("ids are not negative", kv_cache_books.check_kv_cache_conserves_pages, TakesNoNegativeIds),
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
