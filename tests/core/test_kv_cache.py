"""The page manager against a shadow memory that knows, for each slot, everything that its K/V were computed from."""

from __future__ import annotations

import copy
from collections.abc import Callable

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from diffulex_core.errors import OutOfPages
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.pattern import AttentionPattern, BlockCausal, FullPrefix
from tests.core.oracles import sequence_pairs, visible_end

LENGTH = 24
"""Tokens of every sequence, prompt and answer; a multiple of all block sizes."""

PICK = st.integers(0, 9)

Pair = tuple[int, ...]


@attrs.define
class Shadow:
    """What the test knows about one open sequence."""

    tokens: list[int]
    prompt: int
    final: list[Pair]
    """K/V of each position in their final form, over all layers."""
    stored: int


def final_pairs(tokens: list[int], prompt: int, block: int, *, full_prefix: bool) -> list[Pair]:
    layers = sequence_pairs(tokens, prompt, block, full_prefix=full_prefix)[:-1]
    return list(zip(*layers, strict=True))


class Pages(RuleBasedStateMachine):
    """Sequences come, store, commit and go over a pool that is too small for them."""

    @initialize(
        block=st.sampled_from([1, 2, 4]),
        blocks_per_page=st.sampled_from([1, 2]),
        num_pages=st.integers(1, 14),
        full_prefix=st.booleans(),
        prefix_caching=st.sampled_from([True, True, True, False]),
    )
    def start(
        self, block: int, blocks_per_page: int, num_pages: int, *, full_prefix: bool, prefix_caching: bool
    ) -> None:
        self.block, self.page, self.num_pages = block, block * blocks_per_page, num_pages
        self.full_prefix, self.prefix_caching = full_prefix, prefix_caching
        pattern: AttentionPattern = FullPrefix(block_size=block) if full_prefix else BlockCausal(block_size=block)
        self.cache = PagedKVCache(
            num_pages=num_pages, page_size=self.page, pattern=pattern, prefix_caching=prefix_caching
        )
        self.memory: list[Pair] = [(-1, slot) for slot in range(num_pages * self.page)]
        self.open: dict[int, Shadow] = {}
        self.tables: dict[int, list[int]] = {}
        self.resident: dict[int, tuple[int, tuple[Pair, ...]]] = {}
        """Content of the pages that were committed as a whole and were not handed out for rewriting since."""
        self.garbage = 0
        self.next = 0

    @rule(
        same=st.integers(0, LENGTH),
        prompt=st.one_of(st.integers(1, 12), st.just(4)),
        known=st.one_of(st.just(LENGTH), st.integers(0, LENGTH)),
        run=st.booleans(),
    )
    def opens(self, same: int, prompt: int, known: int, *, run: bool) -> None:
        """A few prefixes, again and again: `same` zeros, then ones."""
        tokens = [0] * same + [1] * (LENGTH - same)
        final = final_pairs(tokens, prompt, self.block, full_prefix=self.full_prefix)
        sequence, self.next = self.next, self.next + 1
        hit = self.cache.open(sequence, np.array(tokens[:known], dtype=np.int64), prompt)
        assert hit == self._findable(final, prompt, known) * self.page
        assert self.cache.stored(sequence) == hit
        self.open[sequence] = Shadow(tokens=tokens, prompt=prompt, final=final, stored=hit)
        self.tables[sequence] = self.cache.page_table(sequence).tolist()
        if run:
            self._reserve(sequence, LENGTH)
            self._execute(sequence, LENGTH, 0, then_commit=True)

    @precondition(lambda self: self.open)
    @rule(pick=PICK, slots=st.integers(0, LENGTH))
    def reserves(self, pick: int, slots: int) -> None:
        self._reserve(self._pick(pick), slots)

    @precondition(lambda self: self.open)
    @rule(pick=PICK, more=st.integers(1, 4), in_flight=st.integers(0, 4), then_commit=st.booleans())
    def executes(self, pick: int, more: int, in_flight: int, *, then_commit: bool) -> None:
        """A forward: final K/V for some blocks, and K/V that nobody may rely on for the rows behind them."""
        sequence = self._pick(pick)
        shadow = self.open[sequence]
        end = min(LENGTH, shadow.stored + more * self.block)
        whole = shadow.prompt - shadow.prompt % self.block
        if self.full_prefix and shadow.stored < whole:
            end = max(end, whole)
        self._reserve(sequence, end)
        self._execute(sequence, end, in_flight, then_commit=then_commit)

    @precondition(lambda self: self.open)
    @rule(pick=PICK, more=st.integers(0, LENGTH))
    def truncates(self, pick: int, more: int) -> None:
        """Pages behind what is stored may go; fewer slots than those are refused."""
        sequence = self._pick(pick)
        stored = self.open[sequence].stored
        if stored:
            with pytest.raises(ValueError, match=f"{stored} are stored"):
                self.cache.truncate(sequence, stored - 1)
        self.cache.truncate(sequence, stored + more)
        self.tables[sequence] = self.tables[sequence][: -(-(stored + more) // self.page)]

    @precondition(lambda self: self.open)
    @rule(pick=PICK)
    def releases(self, pick: int) -> None:
        sequence = self._pick(pick)
        self.cache.release(sequence)
        del self.open[sequence], self.tables[sequence]
        for use in (self.cache.release, self.cache.stored, self.cache.page_table):
            with pytest.raises(KeyError):
                use(sequence)

    @precondition(lambda self: self.open)
    @rule(pick=PICK, by=st.integers(1, LENGTH))
    def refuses(self, pick: int, by: int) -> None:
        """An id in use, and commits behind what is stored or past what is held; nothing changes."""
        sequence = self._pick(pick)
        shadow = self.open[sequence]
        tokens = np.array(shadow.tokens, dtype=np.int64)
        before = copy.deepcopy(vars(self.cache))
        with pytest.raises(KeyError):
            self.cache.open(sequence, tokens, shadow.prompt)
        for slots in (len(self.tables[sequence]) * self.page + by, shadow.stored - by):
            if slots >= 0:
                with pytest.raises(ValueError, match="commit"):
                    self.cache.commit(sequence, tokens, slots)
        assert vars(self.cache) == before

    @precondition(lambda self: self._free() > 0)
    @rule()
    def pressure(self) -> None:
        """Somebody takes every free page, scribbles over them and goes away."""
        sequence, self.next = self.next, self.next + 1
        self.cache.open(sequence, np.empty(0, dtype=np.int64), 1)
        self.cache.reserve(sequence, self._free() * self.page)
        for page in self.cache.page_table(sequence).tolist():
            self.resident.pop(page, None)
            for slot in range(page * self.page, (page + 1) * self.page):
                self.garbage += 1
                self.memory[slot] = (-2, self.garbage)
        self.cache.release(sequence)

    @invariant()
    def what_is_stored_is_right(self) -> None:
        for sequence, shadow in self.open.items():
            assert self.cache.stored(sequence) == shadow.stored
            for position in range(shadow.stored):
                assert self.memory[self._slot(sequence, position)] == shadow.final[position]

    @invariant()
    def pages_are_held_or_free(self) -> None:
        for sequence in self.open:
            assert self.cache.page_table(sequence).tolist() == self.tables[sequence]
            assert len(set(self.tables[sequence])) == len(self.tables[sequence])
            assert set(self.tables[sequence]) <= set(range(self.num_pages))
        assert self.cache.num_free_pages == self._free()

    @invariant()
    def no_page_that_may_be_written_is_shared(self) -> None:
        for one, shadow in self.open.items():
            writable = self.tables[one][shadow.stored // self.page :]
            for other in self.open:
                assert one == other or not set(writable) & set(self.tables[other])

    @invariant()
    def the_books_balance(self) -> None:
        self.cache.check_integrity()

    def teardown(self) -> None:
        for sequence in self.open:
            self.cache.release(sequence)
        assert self.cache.num_free_pages == self.num_pages
        self.cache.check_integrity()

    def _pick(self, pick: int) -> int:
        return sorted(self.open)[pick % len(self.open)]

    def _reserve(self, sequence: int, slots: int) -> None:
        missing = max(0, -(-slots // self.page) - len(self.tables[sequence]))
        if missing > self._free():
            before = copy.deepcopy(vars(self.cache))
            with pytest.raises(OutOfPages):
                self.cache.reserve(sequence, slots)
            assert vars(self.cache) == before
            return
        self.cache.reserve(sequence, slots)
        table = self.cache.page_table(sequence).tolist()
        held = len(self.tables[sequence])
        assert table[:held] == self.tables[sequence]
        assert len(table) == held + missing
        for page in table[held:]:
            assert all(page not in other for other in self.tables.values())
            self.resident.pop(page, None)
        self.tables[sequence] = table

    def _execute(self, sequence: int, end: int, in_flight: int, *, then_commit: bool) -> None:
        shadow = self.open[sequence]
        covered = len(self.tables[sequence]) * self.page
        if end > covered:
            return
        for position in range(shadow.stored, end):
            self.memory[self._slot(sequence, position)] = shadow.final[position]
        for position in range(end, min(covered, end + in_flight * self.block)):
            self.garbage += 1
            self.memory[self._slot(sequence, position)] = (-2, self.garbage)
        if then_commit:
            self._commit(sequence, end)

    def _free(self) -> int:
        return self.num_pages - len({page for table in self.tables.values() for page in table})

    def _slot(self, sequence: int, position: int) -> int:
        return self.tables[sequence][position // self.page] * self.page + position % self.page

    def _commit(self, sequence: int, slots: int) -> None:
        shadow = self.open[sequence]
        self.cache.commit(sequence, np.array(shadow.tokens, dtype=np.int64), slots)
        shadow.stored = slots
        self.tables[sequence] = self.cache.page_table(sequence).tolist()
        for index in range(slots // self.page):
            if self._complete(index, shadow.prompt, slots):
                self.resident[self.tables[sequence][index]] = self._content(index, shadow.final, shadow.prompt)

    def _content(self, index: int, final: list[Pair], prompt: int) -> tuple[int, tuple[Pair, ...]]:
        """What a page holds; under the full-prefix view only requests of equal prompt length share."""
        return prompt * self.full_prefix, tuple(final[index * self.page : (index + 1) * self.page])

    def _complete(self, index: int, prompt: int, known: int) -> bool:
        """Whether everything that a page's K/V depend on lies below `known`."""
        positions = range(index * self.page, (index + 1) * self.page)
        return all(visible_end(at, prompt, self.block, full_prefix=self.full_prefix) <= known for at in positions)

    def _findable(self, final: list[Pair], prompt: int, known: int) -> int:
        """Leading pages whose content lies in memory, committed."""
        contents = set(self.resident.values()) if self.prefix_caching else set()
        index = 0
        while (
            (index + 1) * self.page <= known
            and self._complete(index, prompt, known)
            and self._content(index, final, prompt) in contents
        ):
            index += 1
        return index


Pages.TestCase.settings = settings(deadline=None, stateful_step_count=50, max_examples=4 * settings().max_examples)
TestPages = Pages.TestCase


def test_pages_of_another_prompt_length_are_not_shared_where_the_prompt_sees_itself_whole() -> None:
    tokens = np.zeros(16, dtype=np.int64)
    cache = PagedKVCache(num_pages=4, page_size=8, pattern=FullPrefix(block_size=4), prefix_caching=True)
    cache.open(0, tokens, 8)
    cache.reserve(0, 16)
    cache.commit(0, tokens, 16)
    assert cache.open(1, tokens, 8) == 16
    assert cache.open(2, tokens, 5) == 0, "its first block would see five tokens, not eight"


def test_a_page_stays_private_until_all_that_its_pairs_depend_on_is_stored() -> None:
    tokens = np.zeros(16, dtype=np.int64)
    cache = PagedKVCache(num_pages=8, page_size=4, pattern=FullPrefix(block_size=4), prefix_caching=True)
    cache.open(0, tokens, 10)
    cache.reserve(0, 12)
    cache.commit(0, tokens, 8)
    assert cache.open(1, tokens, 10) == 0
    cache.commit(0, tokens, 12)
    assert cache.open(2, tokens, 10) == 12
    assert cache.open(3, tokens[:9], 10) == 0, "the caller must know the whole prompt, too"


def test_a_partly_filled_page_is_never_shared() -> None:
    tokens = np.zeros(16, dtype=np.int64)
    cache = PagedKVCache(num_pages=4, page_size=8, pattern=BlockCausal(block_size=4), prefix_caching=True)
    cache.open(0, tokens, 12)
    cache.reserve(0, 16)
    cache.commit(0, tokens, 12)
    assert cache.open(1, tokens, 12) == 8


def test_pages_computed_twice_are_kept_once() -> None:
    tokens = np.zeros(8, dtype=np.int64)
    cache = PagedKVCache(num_pages=4, page_size=4, pattern=BlockCausal(block_size=4), prefix_caching=True)
    for sequence in (0, 1):
        cache.open(sequence, tokens, 8)
        cache.reserve(sequence, 8)
    for sequence in (0, 1):
        cache.commit(sequence, tokens, 8)
    assert cache.page_table(0).tolist() == cache.page_table(1).tolist()
    assert cache.num_free_pages == 2


def test_the_longest_unused_prefix_goes_first_and_its_last_page_before_its_first() -> None:
    cache = PagedKVCache(num_pages=4, page_size=4, pattern=BlockCausal(block_size=4), prefix_caching=True)
    old, new = np.zeros(8, dtype=np.int64), np.ones(8, dtype=np.int64)
    for sequence, tokens in enumerate((old, new)):
        cache.open(sequence, tokens, 8)
        cache.reserve(sequence, 8)
        cache.commit(sequence, tokens, 8)
    cache.release(0)
    cache.release(1)
    cache.open(2, np.empty(0, dtype=np.int64), 1)
    cache.reserve(2, 4)
    assert cache.open(3, old, 8) == 4
    assert cache.open(4, new, 8) == 8


def _leak(cache: PagedKVCache) -> None:
    vars(cache)["_free"].popitem()


def _share(cache: PagedKVCache) -> None:
    one, other = vars(cache)["_sequences"].values()
    other.pages[-1] = one.pages[-1]


def _count(cache: PagedKVCache) -> None:
    vars(cache)["_references"][cache.page_table(0)[0]] += 1


def _hold_twice(cache: PagedKVCache) -> None:
    state = vars(cache)["_sequences"][0]
    state.pages.append(state.pages[0])


def _free_while_held(cache: PagedKVCache) -> None:
    vars(cache)["_free"][int(cache.page_table(0)[0])] = None


def _misdirect(cache: PagedKVCache) -> None:
    entries = vars(cache)["_page_of_entry"]
    entries[next(iter(entries))] = int(cache.page_table(1)[-1])


@pytest.mark.parametrize("damage", [_leak, _share, _count, _hold_twice, _free_while_held, _misdirect])
def test_the_integrity_check_finds(damage: Callable[[PagedKVCache], None]) -> None:
    tokens = np.zeros(8, dtype=np.int64)
    cache = PagedKVCache(num_pages=6, page_size=4, pattern=BlockCausal(block_size=4), prefix_caching=True)
    for sequence in (0, 1):
        cache.open(sequence, tokens, 8)
        cache.reserve(sequence, 8)
    cache.commit(0, tokens, 8)
    cache.check_integrity()
    damage(cache)
    with pytest.raises(AssertionError):
        cache.check_integrity()


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 40))
@settings(deadline=None)
def test_dependencies_never_end_before_what_a_row_sees(prompt: int, block: int, position: int) -> None:
    for pattern, full_prefix in ((BlockCausal(block_size=block), False), (FullPrefix(block_size=block), True)):
        expected = visible_end(position, prompt, block, full_prefix=full_prefix)
        assert pattern.dependency_end(position, prompt) == expected
