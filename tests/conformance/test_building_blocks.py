"""What the kit is built of, and gives to others: its oracles, fakes and limits."""

from __future__ import annotations

import gc
import hashlib
import signal
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings as hypothesis_settings

from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.pattern import BlockCausal
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.testing.check import CheckFailed, check
from diffulex_core.testing.collisions import colliding_hashes, modules_of
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.fakes import ScriptedRunner, all_at_once, one_at_a_time
from diffulex_core.testing.paging import cache_of
from diffulex_core.testing.patience import OutOfPatience, patience
from diffulex_core.testing.serving import Serving
from diffulex_core.testing.subjects import KVCacheSubject
from diffulex_core.testing.workload import Ask, Setting, ask, asks, expected, settings
from tests.conformance import broken_cache_keys as mutants
from tests.core import oracles


@given(setting=settings(), asked=asks())
@hypothesis_settings(deadline=None)
def test_a_lone_request_answers_as_the_published_rules_say(setting: Setting, asked: Ask) -> None:
    """The kit drives core's request by a naive loop; the rules are written down once more in the tests."""
    answer = expected(setting, asked)
    rules = oracles.decode_alone(
        oracles.Setting(
            block_size=setting.block_size,
            buffer_size=setting.buffer_size,
            full_prefix=setting.full_prefix,
            mask=99,
            eos=frozenset({7}),
            max_model_len=setting.max_model_len,
            add_block=setting.add_block,
            semi_complete=setting.semi_complete,
            accept=setting.accept,
            stability=setting.stability,
            always_force=setting.always_force,
            shifted=setting.shifted,
        ),
        oracles.Ask(
            prompt=asked.prompt,
            seed=asked.seed,
            max_tokens=asked.max_tokens,
            ignore_eos=asked.ignore_eos,
            stop=asked.stop,
        ),
    )
    assert (answer.tokens, answer.reason.value, answer.rows) == (rules.tokens, rules.reason, rules.rows)


def test_a_script_decides_what_it_names() -> None:
    for take, steps in ((one_at_a_time, 8), (all_at_once, 3)):
        runner = ScriptedRunner(take, lambda window, position: position)
        serving = Serving(ContinuousScheduler, PagedKVCache, Setting(buffer_size=1), runner=runner)
        number = serving.add(ask(4, max_tokens=8))
        request = serving.live[number].request
        while serving.live:
            serving.step()
        assert request.output_tokens.tolist() == list(range(4, 12))
        assert serving.steps <= steps


@pytest.mark.parametrize("wait", [lambda: time.sleep(5), lambda: _spin(5)])
def test_a_call_that_does_not_return_ends_in_a_failure(wait: object) -> None:
    assert callable(wait)
    handlers = [signal.getsignal(each) for each in (signal.SIGALRM, signal.SIGVTALRM)]

    @check(KVCacheSubject)
    def check_nothing(subject: KVCacheSubject, effort: Effort) -> None:
        """Nothing.

        Why: to see it end.
        Fix: nothing.
        """
        with patience("waiting", busy=0.05, idle=0.3):
            wait()

    with pytest.raises(CheckFailed, match="waiting does not return"):
        check_nothing(KVCacheSubject(name="any", factory=PagedKVCache), Effort())
    assert [signal.getsignal(each) for each in (signal.SIGALRM, signal.SIGVTALRM)] == handlers


def _spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def _parts() -> None:
    for _ in range(1000):
        with patience("a part", idle=0.25):
            time.sleep(0.01)


def test_an_outer_limit_holds_while_inner_ones_come_and_go() -> None:
    with pytest.raises(OutOfPatience, match="the whole"), patience("the whole", idle=0.3):
        _parts()


def test_an_inner_limit_may_be_the_sooner_one() -> None:
    with pytest.raises(OutOfPatience, match="the part"), patience("the whole", idle=5), patience("the part", idle=0.1):
        time.sleep(1)


def test_a_limit_that_was_begun_and_never_ended_leaves_no_timer_behind() -> None:
    begun = []
    with patience("the whole", idle=9):
        begun.append(patience("a part", busy=1, idle=7))
        begun[0].__enter__()
    begun.clear()
    gc.collect()
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGVTALRM) == signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_short_hashes_collide_where_the_cache_calls_them_and_nowhere_else() -> None:
    pattern = BlockCausal(block_size=4)
    cache, _ = cache_of(mutants.KeyIsAHash, num_pages=4, page_size=4, pattern=pattern, prefix_caching=True)
    with colliding_hashes(modules_of(cache)):
        inside = vars(mutants)["hash"]((1, 2))
        assert (inside, zlib.crc32(b"1"), zlib.crc32(b"2")) == (0, 0, 0)
        assert hash((1, 2)) != hash((2, 1))
        assert hashlib.sha256(b"1").digest() != hashlib.sha256(b"2").digest()
    assert zlib.crc32(b"1") != zlib.crc32(b"2")
    assert "hash" not in vars(mutants)


class KeepsOnePage(PagedKVCache):
    """Its last page is for rows of padding."""

    def __init__(self, **settings: int) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.reserve_for_padding()

    def reserve_for_padding(self) -> None:
        self._free.popitem()
        self._references.pop()
        self._num_pages -= 1


def test_a_cache_that_keeps_a_page_for_itself_is_given_one_more() -> None:
    pattern = BlockCausal(block_size=4)
    cache, made = cache_of(KeepsOnePage, num_pages=4, page_size=4, pattern=pattern, prefix_caching=True)
    assert (cache.num_pages, made) == (4, 5)
    cache.open(0, np.empty(0, dtype=np.int64), 1)
    cache.reserve(0, 16)
    assert sorted(cache.page_table(0).tolist()) == [0, 1, 2, 3]
