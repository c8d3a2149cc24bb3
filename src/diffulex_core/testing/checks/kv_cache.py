"""Checks of KV caches: who may read which page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
from hypothesis import strategies as st

from diffulex_core.canvas.pattern import FullCanvas
from diffulex_core.pattern import AttentionPattern, BlockCausal, FullPrefix
from diffulex_core.protocols import KVCacheManager
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.checks import kv_cache_books
from diffulex_core.testing.collisions import colliding_hashes, modules_of
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.machines.kv_cache import kv_cache_machine
from diffulex_core.testing.paging import Paging
from diffulex_core.testing.subjects import KVCacheSubject

CAUSAL, PREFIX = BlockCausal(block_size=4), FullPrefix(block_size=4)
ZEROS = (0,) * 24

_LAYOUTS = ((4, 4, False), (2, 4, False), (4, 4, True), (4, 8, True), (2, 4, True), (1, 1, True))
"""Block size, page size, and whether the prompt sees itself whole."""


@check(KVCacheSubject)
def check_kv_cache_survives_any_history(subject: KVCacheSubject, effort: Effort) -> None:
    """Whatever history: what counts as stored is there, pages are conserved, and no page that is written is shared.

    Why: a page that is handed to a second sequence too early, or under the wrong text, makes it answer from somebody
    else's words. A shadow memory knows for each slot every token that its K/V were computed from.
    Fix: the failure lists the shortest history that shows it, rule by rule; play it back with
    `kv_cache_machine(YourCache)`. Most likely a check with a narrower name fails as well: repair that first.
    """
    effort.run_machine(kv_cache_machine(subject.factory), steps=40, share=5)


@check(KVCacheSubject)
def check_kv_cache_survives_hash_collisions(subject: KVCacheSubject, effort: Effort) -> None:
    """The same histories, while every short hash that the cache computes collides with every other.

    Why: hashes of 64 bits collide in a busy server, by accident or by somebody's intent, and then one user reads
    another's prompt. `hash`, zlib's checksums and xxhash return a constant here where the cache's package calls them;
    a cache that compares tokens, as core's does, does not notice.
    Fix: compare the tokens (and the page before them) when a hash is found, or use keys that are the tokens.
    """
    probe = subject.factory(num_pages=4, page_size=4, pattern=CAUSAL, prefix_caching=True)
    modules = modules_of(probe)

    def colliding() -> AbstractContextManager[None]:
        return colliding_hashes(modules)

    effort.run_machine(kv_cache_machine(subject.factory, colliding), steps=30, share=2)


@check(KVCacheSubject)
def check_kv_cache_publishes_at_commit(subject: KVCacheSubject, effort: Effort) -> None:
    """Nobody finds a page before it is committed: not when it is reserved, while it is written, or after a release.

    Why: until then its K/V are not there, or still change with every forward. Whoever reads them decodes noise.
    Fix: make pages findable in `commit`, whole ones below `slots` only, and never in `open` or `reserve`.
    """
    for pattern in (CAUSAL, PREFIX):
        for written in (0, 8, 16):
            paging = Paging(subject.factory, pattern, num_pages=20)
            first = paging.open(ZEROS, 8)
            _finds(paging, 8, 0, "a sequence was opened, and has no pages yet")
            paging.reserve(first, 16)
            _finds(paging, 8, 0, "its pages were reserved only")
            paging.execute(first, written, 4)
            _finds(paging, 8, 0, "its pages were written and not committed")
            paging.execute(first, 8, 8)
            paging.commit(first, 8)
            _finds(paging, 8, 8, "8 slots were committed of 16")
            paging.release(first)
            _finds(paging, 8, 8, "8 slots were committed of 16, and then it was released")
            other = paging.open((1,) * 24, 8)
            paging.reserve(other, 16)
            paging.release(other)
            at_most = paging.open((1,) * 24, 8)
            if paging.sequences[at_most].stored:
                raise CheckFailed("a sequence was released before anything of it was committed, and is found.")
            paging.verify()
    paging = Paging(subject.factory, BlockCausal(block_size=2), num_pages=20, page_size=8)
    first = paging.open(ZEROS, 8)
    paging.store(first, 14)
    _finds(paging, 8, 8, "14 slots were committed, in pages of 8")


def _finds(paging: Paging, prompt_len: int, most: int, when: str) -> None:
    """Another sequence with the same text finds `most` slots or fewer, and what it finds is there."""
    number = paging.open(ZEROS, prompt_len)
    if paging.sequences[number].stored > most:
        raise CheckFailed(
            f"{when}, and open() of another sequence with the same text found {paging.sequences[number].stored} slots; "
            f"at most {most} may be found. {paging}"
        )
    paging.verify()
    paging.release(number)


@check(KVCacheSubject)
def check_kv_cache_shares_only_equal_dependencies(subject: KVCacheSubject, effort: Effort) -> None:
    """Of another text only those pages are found whose K/V depend on nothing in which the two differ.

    Why: K/V at a position depend on every token up to `pattern.dependency_end(position, prompt_len)`, which may lie
    behind the page, as under a full prefix; and requests of different `sharing_scope` see their prompts differently. A
    key that covers less serves K/V of another text.
    Fix: a page's key holds the key of the page before it, the tokens up to the dependency end of its last position, and
    the sharing scope; a page is found only where the known tokens cover all of these.
    """

    for block, page, full_prefix in _LAYOUTS:
        kind = FullPrefix if full_prefix else BlockCausal
        for prompts in ((8, 8), (10, 10), (3, 3), (5, 6), (9, 10), (8, 12)):
            for at in range(16):
                other = [int(position == at) for position in range(16)]
                for text, known in ((other, 16), (other, at), (ZEROS[:16], at)):
                    _reads_its_own(subject, kind(block_size=block), page, (ZEROS[:16], text), prompts, known)

    _tells_many_apart(subject)

    @effort.for_all(
        text=st.lists(st.integers(0, 2), min_size=16, max_size=16),
        shift=st.integers(1, 15),
        prompts=st.tuples(st.integers(1, 14), st.integers(1, 14)),
        full_prefix=st.booleans(),
    )
    def holds(text: list[int], shift: int, prompts: tuple[int, int], *, full_prefix: bool) -> None:
        kind = FullPrefix if full_prefix else BlockCausal
        other = text[shift:] + text[:shift]
        _reads_its_own(subject, kind(block_size=2), 4, (text, other), prompts, 16)


def _tells_many_apart(subject: KVCacheSubject) -> None:
    """So many pages that digests of a few bits collide, and tokens that differ in high bits only."""
    numbers = np.random.default_rng(0)
    texts = [tuple(numbers.integers(0, 200_000, 4).tolist()) for _ in range(150)]
    texts += [(*texts[0][:at], texts[0][at] + more, *texts[0][at + 1 :]) for at in range(4) for more in (256, 65536)]
    paging = Paging(subject.factory, CAUSAL, num_pages=len(texts) + 1)
    for text in (*texts, *texts):
        number = paging.open(text, 4)
        paging.store(number, 4)
        paging.sound()
        paging.release(number)


def _reads_its_own(
    subject: KVCacheSubject,
    pattern: AttentionPattern,
    page_size: int,
    texts: tuple[Sequence[int], Sequence[int]],
    prompts: tuple[int, int],
    known: int,
) -> None:
    """After one text was stored another is opened, and stored, and reads its own K/V at all times."""
    paging = Paging(subject.factory, pattern, num_pages=32, page_size=page_size)
    paging.store(paging.open(texts[0], prompts[0]), 16)
    number = paging.open(texts[1], prompts[1], known)
    paging.sound()
    found = paging.sequences[number].stored
    end = max((pattern.dependency_end(position, prompts[1]) for position in range(found)), default=0)
    if end > known:
        raise CheckFailed(
            f"open() with {known} known tokens found {found} slots; their K/V depend on the tokens below {end}, which "
            f"nobody said were the same. {paging}"
        )
    paging.store(number, 16)
    paging.sound()
    paging.open(texts[0], prompts[0])
    paging.sound()


@check(KVCacheSubject)
def check_kv_cache_publishes_what_it_is_told_only(subject: KVCacheSubject, effort: Effort) -> None:
    """`commit` with fewer tokens than slots publishes the pages that those tokens cover, and keeps the others private.

    Why: requests whose K/V do not follow from their tokens (blended embeddings), or that may not be shared for other
    reasons, commit all slots and name the tokens of those that may be. With none named nothing may be found.
    Fix: publish a page only where the given tokens reach the dependency end of its last position; raise nothing where
    they do not.
    """
    for pattern in (CAUSAL, PREFIX):
        for told in (0, 3, 8, 11):
            paging = Paging(subject.factory, pattern, num_pages=20)
            first = paging.open(ZEROS, 8)
            paging.reserve(first, 16)
            paging.execute(first, 16)
            paging.commit(first, 16, told)
            paging.verify()
            _finds(paging, 8, told // 4 * 4 if pattern is CAUSAL or told >= 8 else 0, f"{told} tokens were named")


@check(KVCacheSubject)
def check_kv_cache_shares_nothing_where_it_must_not(subject: KVCacheSubject, effort: Effort) -> None:
    """With `prefix_caching=False`, and under patterns whose dependencies never end, nothing is ever found.

    Why: strategies switch sharing off where it is unsound; a canvas's K/V depend on every other token of it.
    Fix: heed the factory's `prefix_caching`, and publish no page whose `dependency_end` lies behind the tokens.
    """
    cases: tuple[tuple[AttentionPattern, bool, str], ...] = (
        (CAUSAL, False, "prefix_caching is off"),
        (FullCanvas(block_size=4), True, "every token's K/V depend on all of the canvas"),
    )
    for pattern, prefix_caching, why in cases:
        paging = Paging(subject.factory, pattern, num_pages=20, prefix_caching=prefix_caching)
        first = paging.open(ZEROS, 8)
        paging.reserve(first, 16)
        if pattern is CAUSAL:
            paging.execute(first, 16)
        paging.cache.commit(first, np.array(ZEROS, dtype=np.int64), 16)
        for again in range(2):
            second = paging.open(ZEROS, 8)
            if paging.sequences[second].stored:
                raise CheckFailed(f"open() found {paging.sequences[second].stored} slots, although {why}.")
            paging.release(second)
            if not again:
                paging.release(first)


@check(KVCacheSubject, level="recommended")
def check_kv_cache_finds_committed_prefixes(subject: KVCacheSubject, effort: Effort) -> None:
    """While there are free pages, a text that was committed is found by whoever comes with the same one.

    Why: it is what prefix caching is for: system prompts and earlier turns cost nothing the second time.
    Fix: publish every whole page that `commit` covers with all that its K/V depend on, keep it findable after
    `release`, and reuse pages that nobody can find before those that somebody may.
    """
    for pattern in (CAUSAL, PREFIX):
        for page_size in (4, 8):
            paging = Paging(subject.factory, pattern, num_pages=24, page_size=page_size)
            first = paging.open(ZEROS, 9)
            paging.store(first, 12)
            paging.store(first, 24)
            whole = 24 // page_size * page_size
            for when in ("while that one is open", "after it was released", "the second time"):
                number = paging.open(ZEROS, 9)
                if paging.sequences[number].stored != whole:
                    raise CheckFailed(
                        f"24 slots were committed; {when}, another sequence with the same text found "
                        f"{paging.sequences[number].stored} of {whole} slots in whole pages. {paging}"
                    )
                paging.release(number)
                if when == "while that one is open":
                    paging.release(first)
            passer = paging.open((1,) * 24, 9)
            paging.store(passer, 24)
            paging.release(passer)
            number = paging.open(ZEROS, 9)
            if paging.sequences[number].stored != whole:
                raise CheckFailed(f"the pages of a text were given away while others were free. {paging}")


@check(KVCacheSubject, level="recommended")
def check_kv_cache_keeps_no_arrays(subject: KVCacheSubject, effort: Effort) -> None:
    """Arrays of tokens that are passed in may be overwritten afterwards, without any page being found wrongly.

    Why: requests pass views of the buffers that they go on writing.
    Fix: copy what a key is made of, as with `tokens.tobytes()` or `tuple(tokens.tolist())`.
    """
    cache: KVCacheManager = subject.factory(num_pages=20, page_size=4, pattern=CAUSAL, prefix_caching=True)
    tokens = np.zeros(16, dtype=np.int64)
    cache.open(0, tokens, 8)
    cache.reserve(0, 16)
    cache.commit(0, tokens, 16)
    tokens[:] = 1
    found = cache.open(1, np.ones(16, dtype=np.int64), 8)
    if found:
        raise CheckFailed(f"{found} slots of a text were found that was never stored: a key is the caller's array.")
    if cache.open(2, np.zeros(16, dtype=np.int64), 8) not in (0, 16):
        raise CheckFailed("a text that was stored is found in part only, after the caller overwrote his array.")


@check(KVCacheSubject)
def check_kv_cache_forgets_what_followed_a_page(subject: KVCacheSubject, effort: Effort) -> None:
    """What followed a page is not found behind another text that is written to that page.

    Why: an index that knows the page before by its number serves K/V that were computed behind another text. It takes
    a page that comes back in the same place, so it shows on busy servers only.
    Fix: let the key of a page hold what says the whole text before it: the tokens, a hash of all of them, or a number
    that is never given again. Or forget all that follows a page when somebody takes it.
    """
    pages = [(word,) * CAUSAL.block_size for word in range(20)]
    text = sum(pages[:3], ())
    for taken in range(1, 7):
        for lengths in ([taken], [1] * taken):
            paging = Paging(subject.factory, CAUSAL, num_pages=7)
            number = paging.open(text, len(text))
            paging.store(number, len(text))
            paging.release(number)
            for index, length in enumerate(lengths):
                other = sum(pages[5 + index : 5 + index + length], ())
                paging.store(paging.open(other, len(other)), len(other))
                for rest in (text[4:], text[8:]):
                    number = paging.open((*other, *rest), len(other) + len(rest))
                    paging.verify()
                    paging.release(number)


CHECKS: tuple[AnyCheck, ...] = (
    *kv_cache_books.CHECKS,
    check_kv_cache_publishes_at_commit,
    check_kv_cache_shares_only_equal_dependencies,
    check_kv_cache_forgets_what_followed_a_page,
    check_kv_cache_publishes_what_it_is_told_only,
    check_kv_cache_shares_nothing_where_it_must_not,
    check_kv_cache_finds_committed_prefixes,
    check_kv_cache_keeps_no_arrays,
    check_kv_cache_survives_any_history,
    check_kv_cache_survives_hash_collisions,
)
