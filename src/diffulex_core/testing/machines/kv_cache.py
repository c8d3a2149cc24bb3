"""A KV cache under any history: sequences come, store, commit and go over a pool that is too small for them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from diffulex_core.pattern import AttentionPattern, BlockCausal, FullPrefix
from diffulex_core.testing.check import CheckFailed
from diffulex_core.testing.paging import Paging
from diffulex_core.testing.subjects import MakeKVCache

T = TypeVar("T")

LENGTH = 16
"""Tokens of every sequence, prompt and answer; a multiple of all page sizes."""

_PICK = st.integers(0, 9)


class KVCacheMachine(RuleBasedStateMachine):
    """Sequences whose texts are alike, over few pages. A subclass says whose cache it is."""

    make: MakeKVCache
    around: Callable[[], AbstractContextManager[None]]

    def __init__(self) -> None:
        super().__init__()
        self.paging: Paging | None = None
        self.texts: list[tuple[int, ...]] = [(0,) * LENGTH]
        self.failed = False

    @initialize(
        block=st.sampled_from([1, 2, 4]),
        blocks_per_page=st.sampled_from([1, 2]),
        num_pages=st.integers(2, 14),
        full_prefix=st.booleans(),
        prefix_caching=st.sampled_from([True, True, True, False]),
        reuses_ids=st.booleans(),
    )
    def start(
        self,
        block: int,
        blocks_per_page: int,
        num_pages: int,
        *,
        full_prefix: bool,
        prefix_caching: bool,
        reuses_ids: bool,
    ) -> None:
        """A small pool."""
        pattern: AttentionPattern = FullPrefix(block_size=block) if full_prefix else BlockCausal(block_size=block)
        self.paging = Paging(
            type(self).make,
            pattern,
            num_pages=num_pages,
            page_size=block * blocks_per_page,
            prefix_caching=prefix_caching,
            reuses_ids=reuses_ids,
            around=type(self).around,
        )

    @rule(
        earlier=_PICK,
        at=st.integers(0, LENGTH - 1),
        how=st.sampled_from(["same", "same", "other token", "swapped", "other tail"]),
        prompt_len=st.one_of(st.integers(1, 12), st.just(4)),
        known=st.one_of(st.just(LENGTH), st.integers(0, LENGTH)),
        stores=st.booleans(),
    )
    def opens(self, earlier: int, at: int, how: str, prompt_len: int, known: int, *, stores: bool) -> None:
        """A text that was there before, or one that differs a little."""
        text = self.texts[earlier % len(self.texts)]
        if how == "other token":
            text = (*text[:at], 1 - text[at], *text[at + 1 :])
        elif how == "swapped":
            text = (*text[at:], *text[:at])
        elif how == "other tail":
            text = (*text[:at], *(1 - token for token in text[at:]))
        self.texts.append(text)
        number = self._act(lambda: self.at_work.open(text, prompt_len, known))
        if not self.at_work.prefix_caching and self.at_work.sequences[number].stored:
            self.failed = True
            raise CheckFailed("prefix_caching is off, and open() found something that another sequence stored.")
        if stores:
            self._act(lambda: self.at_work.store(number, LENGTH))

    @precondition(lambda self: self.paging is not None and self.paging.sequences)
    @rule(pick=_PICK, slots=st.integers(0, LENGTH))
    def reserves(self, pick: int, slots: int) -> None:
        """Pages, written by nobody."""
        self._act(lambda: self.at_work.reserve(self._pick(pick), slots))

    @precondition(lambda self: self.paging is not None and self.paging.sequences)
    @rule(pick=_PICK, blocks=st.integers(1, 4), in_flight=st.integers(0, 6), commits=st.booleans())
    def executes(self, pick: int, blocks: int, in_flight: int, *, commits: bool) -> None:
        """A forward that makes some blocks final and writes some slots behind them."""
        number, paging = self._pick(pick), self.at_work
        sequence = paging.sequences[number]
        end = paging.pattern.dependency_end(
            min(LENGTH, sequence.stored + blocks * paging.pattern.block_size) - 1, sequence.prompt_len
        )
        end = -(-end // paging.pattern.block_size) * paging.pattern.block_size
        if self._act(lambda: paging.reserve(number, end)):
            self._act(lambda: paging.execute(number, end, in_flight))
            if commits:
                self._act(lambda: paging.commit(number, end))

    @precondition(lambda self: self.paging is not None and self.paging.sequences)
    @rule(pick=_PICK, told=st.integers(0, LENGTH))
    def commits_in_part(self, pick: int, told: int) -> None:
        """All is final, but only some of the tokens are for others."""
        number = self._pick(pick)
        if self._act(lambda: self.at_work.reserve(number, LENGTH)):
            self._act(lambda: self.at_work.execute(number, LENGTH))
            self._act(lambda: self.at_work.commit(number, LENGTH, told))

    @precondition(lambda self: self.paging is not None and self.paging.sequences)
    @rule(pick=_PICK, more=st.integers(0, LENGTH))
    def truncates(self, pick: int, more: int) -> None:
        """Pages behind what is stored go back."""
        number = self._pick(pick)
        self._act(lambda: self.at_work.truncate(number, self.at_work.sequences[number].stored + more))

    @precondition(lambda self: self.paging is not None and self.paging.sequences)
    @rule(pick=_PICK)
    def releases(self, pick: int) -> None:
        """A sequence ends, wherever it is."""
        self._act(lambda: self.at_work.release(self._pick(pick)))

    @rule()
    def pressure(self) -> None:
        """Everything that is free is overwritten."""
        self._act(self.at_work.take_everything)

    @invariant()
    def rules_hold(self) -> None:
        """Sound, counted, private."""
        if self.paging is not None and not self.failed:
            self._act(self.paging.verify)

    def teardown(self) -> None:
        """Everybody goes, and every page is free."""
        if self.paging is None or self.failed:
            return
        for number in list(self.paging.sequences):
            self.paging.release(number)
        self.paging.verify()

    @property
    def at_work(self) -> Paging:
        """What the history is played on."""
        assert self.paging is not None
        return self.paging

    def _pick(self, pick: int) -> int:
        return sorted(self.at_work.sequences)[pick % len(self.at_work.sequences)]

    def _act(self, act: Callable[[], T]) -> T:
        """Play a part of the history; after a failure nothing more is tried."""
        self.failed = True
        result = act()
        self.failed = False
        return result


def kv_cache_machine(
    make: MakeKVCache, around: Callable[[], AbstractContextManager[None]] = nullcontext
) -> type[KVCacheMachine]:
    """A state machine for a KV cache.

    `effort.run_machine(kv_cache_machine(MyCache))` runs it, and so does pytest with
    `TestMine = kv_cache_machine(MyCache).TestCase`.

    Args:
        make: factory of the cache, called as components of that kind are.
        around: makes a context that is entered for each call.
    """
    return type("Paging", (KVCacheMachine,), {"make": staticmethod(make), "around": staticmethod(around)})
