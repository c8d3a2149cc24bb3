"""The sparse cache in an engine: what it equals, what it costs, who may use it, and that nothing else notices."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from diffulex_core.engine import Diffulex
from diffulex_core.errors import ConfigError, InvalidSamplingParams, UnknownNameError
from diffulex_core.host import Host
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.sparse import SparseConfig
from diffulex_core.types import CompletionReason
from tests.core.throwaway import Site
from tests.integration.engines import MASK, PARITY, SETTINGS, engine, host as installed, prompt

EACH = pytest.mark.parametrize(
    ("strategy", "checkpoint"), [("llada_canvas", "llada"), ("dream_canvas", "dream"), ("llada_canvas", "dream")]
)
PAGE = 8


def params(sparse: SparseConfig | None = None, **settings: Any) -> SamplingParams:
    given = {"temperature": 0.0, "ignore_eos": True, "seed": 4, "gen_length": 20, "steps": 20, **settings}
    return SamplingParams(**given, sparse=sparse)


def canvas(strategy: str = "llada_canvas", checkpoint: str = "llada", **settings: Any) -> Diffulex:
    return engine(checkpoint, **{"decoding_strategy": strategy, "page_size": PAGE, **settings})


def tokens(answers: Sequence[ReqTrajectory]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


def rows(answer: ReqTrajectory) -> list[int]:
    return [step.rows for step in answer.trajectory]


def asks(strategy: str) -> list[SamplingParams]:
    """Requests that differ in all that a sparse cache may say, and two without one."""
    caches = [
        None,
        SparseConfig(retention_ratio=1.0),
        SparseConfig(retention_ratio=0.3, delay_step=0, head_select=True),
        SparseConfig(retention_ratio=0.7, delay_step=3, pool_kernel=5),
        SparseConfig(refresh_every=3, pool_kernel=1),
        SparseConfig(refresh_drift=0.4),
        SparseConfig(enabled=False),
        SparseConfig(retention_ratio=0.1, head_select=True),
    ]
    own: list[dict[str, Any]] = [
        {"block_length": 5},
        {"block_length": 8, "cfg_scale": 0.5},
        {"block_length": 6, "remasking": "random"},
        {"temperature": 1.0, "block_length": 10},
        {"alg": "confidence_threshold", "thresholds": {"accept_threshold": 0.3}, "block_length": 7},
        {"gen_length": 31, "steps": 12, "block_length": 8, "temperature": 0.5},
        {"gen_length": 9, "cfg_scale": 1.0},
        {"gen_length": 26, "block_length": 13, "cfg_scale": 1.5, "defer_eos": True},
    ]
    if strategy == "dream_canvas":
        algs = ["entropy", "maskgit_plus", "origin", "topk_margin", "confidence_threshold"]
        drop = ("block_length", "remasking", "alg", "thresholds")
        own = [
            {**{name: value for name, value in each.items() if name not in drop}, "alg": algs[index % 5]}
            for index, each in enumerate(own)
        ]
    return [
        params(cache, **{**each, "seed": index}) for index, (cache, each) in enumerate(zip(caches, own, strict=True))
    ]


PROMPTS = [prompt(3 + 4 * index, salt=index) for index in range(8)]


@EACH
def test_requests_of_all_kinds_in_a_batch_equal_each_alone_whatever_there_is_room_for(
    strategy: str, checkpoint: str
) -> None:
    each = asks(strategy)
    with canvas(strategy, checkpoint) as ready:
        alone = [ready.generate(text, one)[0] for text, one in zip(PROMPTS, each, strict=True)]
        together = ready.generate(PROMPTS, each)
    assert tokens(together) == tokens(alone)
    assert [rows(answer) for answer in together] == [rows(answer) for answer in alone]
    for settings in (
        {"num_pages": 17},
        {"max_num_batched_tokens": 130, "max_refresh_tokens": 40},
        {"page_size": 32},
        {"max_num_reqs": 3, "max_logits_tokens": 3, "attn_impl": "torch_ref"},
    ):
        with canvas(strategy, checkpoint, **settings) as ready:
            assert tokens(ready.generate(PROMPTS, each)) == tokens(alone), settings


@EACH
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_cache_that_is_off_or_always_renewed_is_the_dense_path_to_the_row(
    strategy: str, checkpoint: str, scale: float
) -> None:
    blocks = {"block_length": 7} if strategy == "llada_canvas" else {"alg": "maskgit_plus"}
    with canvas(strategy, checkpoint) as ready:
        dense, off, always = (
            ready.generate(prompt(9), params(each, cfg_scale=scale, **blocks))[0]
            for each in (None, SparseConfig(enabled=False, retention_ratio=0.1), SparseConfig(refresh_every=1))
        )
    assert dense.token_ids == off.token_ids == always.token_ids
    assert rows(dense) == rows(off) == rows(always) == [29 * (1 + (scale > 0))] * len(dense.trajectory)


class Pages:
    """What the pages of a lone request hold, by logical slot."""

    def __init__(self, ready: Diffulex) -> None:
        self._store: Any = ready._open.runner._runner._kv_store  # type: ignore[attr-defined]

    def read(self, table: Any, slots: range) -> list[torch.Tensor]:
        at = torch.tensor([int(table[slot // PAGE]) * PAGE + slot % PAGE for slot in slots])
        return [pages.flatten(0, 1)[at].clone() for pages in (*self._store.key_pages, *self._store.value_pages)]


@pytest.mark.parametrize(("checkpoint", "head_select"), [("llada", False), ("llada", True), ("dream", True)])
def test_at_ratio_one_the_pairs_of_the_refresh_are_kept_to_the_bit(checkpoint: str, head_select: bool) -> None:
    """A refresh makes the same forward as a dense step, so its pairs are known."""
    block = {"block_length": 8, "gen_length": 16, "steps": 16}
    stored = {}
    for name, sparse in (("dense", None), ("sparse", SparseConfig(retention_ratio=1.0, head_select=head_select))):
        with canvas("llada_canvas", checkpoint) as ready:
            pages = Pages(ready)
            ready.add_request(prompt(9), params(sparse, **block))
            for step in range(4):
                [window] = ready.step().plan.windows  # type: ignore[union-attr]
                if step == 1:
                    slots = [*range(9), *range(17, 25)] if sparse is None else list(range(17))
                    stored[name] = pages.read(window.page_table, slots)  # type: ignore[arg-type]
                    table = window.page_table
            if sparse is not None:
                later = pages.read(table, range(17))
    for dense, packed, after in zip(stored["dense"], stored["sparse"], later, strict=True):
        assert torch.equal(dense, packed)
        assert torch.equal(packed, after), "a block's own rows overwrote what was kept"


def test_at_ratio_one_it_makes_no_difference_how_tokens_are_chosen() -> None:
    block = {"block_length": 6}
    ways = [{}, {"head_select": True}, {"pool_kernel": 1}, {"pool_kernel": 7, "head_select": True}]
    with canvas() as ready:
        answers = [
            ready.generate(prompt(20), params(SparseConfig(retention_ratio=1.0, **way), **block))[0] for way in ways
        ]
    assert len(set(tokens(answers))) == 1


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ({"enabled": False}, {}),
        ({"retention_ratio": 0.05}, {}),
        ({"delay_step": 4}, {}),
        ({"default_block_len": 9}, {"block_length": None}),
        ({"head_select": True}, {}),
        ({"pool_kernel": 9}, {}),
        ({"refresh_every": 2}, {}),
        ({"refresh_drift": 0.3}, {}),
        ({"force_first": True}, {}),
    ],
    ids=str,
)
def test_every_field_changes_what_is_decided_or_computed(change: dict[str, Any], settings: dict[str, Any]) -> None:
    fields = {"retention_ratio": 0.3, "delay_step": 1, "default_block_len": 5}
    given = {"block_length": 5, **settings}
    different = 0
    with canvas() as ready:
        for salt in range(3):
            before, after = (
                ready.generate(prompt(40, salt), params(SparseConfig(**each), **given))[0]
                for each in (fields, {**fields, **change})
            )
            different += (before.token_ids, rows(before)) != (after.token_ids, rows(after))
    assert different >= 2


def test_blocks_come_from_the_cache_only_where_nobody_else_gives_them() -> None:
    sparse = SparseConfig(default_block_len=5, delay_step=0)
    with canvas() as ready:
        own, theirs = (
            rows(ready.generate(prompt(10), params(sparse, block_length=length))[0]) for length in (None, 10)
        )
    with canvas(block_length=4) as ready:
        keyed = rows(ready.generate(prompt(10), params(sparse))[0])
    assert (min(own), own.count(30)) == (5, 4)
    assert (min(theirs), theirs.count(30)) == (10, 2)
    assert (min(keyed), keyed.count(30)) == (4, 5)


def test_the_engines_own_cache_is_for_requests_that_say_nothing_of_it() -> None:
    config = SparseConfig(retention_ratio=0.3, delay_step=0)
    block = {"block_length": 5}
    with canvas() as ready:
        wanted, dense = (ready.generate(prompt(9), params(each, **block))[0] for each in (config, None))
    with canvas(sparse=config) as ready:
        keyed = ready.generate(prompt(9), params(**block))[0]
        off = ready.generate(prompt(9), params(SparseConfig(enabled=False), **block))[0]
        own = ready.generate(prompt(9), params(SparseConfig(delay_step=2), **block))[0]
    assert (keyed.token_ids, rows(keyed)) == (wanted.token_ids, rows(wanted))
    assert (off.token_ids, rows(off)) == (dense.token_ids, rows(dense))
    assert rows(own)[:5] == [29, 29, 29, 5, 5]


def test_it_is_refused_where_there_is_no_canvas_and_named() -> None:
    with engine() as ready:
        with pytest.raises(InvalidSamplingParams, match="sparse is a setting of fixed-length generation"):
            ready.generate(prompt(4), SamplingParams(sparse=SparseConfig()))
        [answer] = ready.generate(prompt(4), SamplingParams(max_tokens=4, sparse=SparseConfig(enabled=False)))
        assert answer.error is None
    with pytest.raises(ConfigError, match=r"sparse\.enabled is True, but the strategy 'multi_bd' generates no canvas"):
        engine(sparse={"enabled": True})
    with (
        canvas("dream_canvas", "dream") as ready,
        pytest.raises(InvalidSamplingParams, match="force_first is a rule for blocks"),
    ):
        ready.generate(prompt(4), params(SparseConfig(force_first=True)))


def test_a_request_that_is_taken_out_gives_its_pages_back_in_every_phase() -> None:
    with canvas(num_pages=8) as ready:
        for steps in range(1, 7):
            request = ready.add_request(prompt(10), params(SparseConfig(), block_length=5, cfg_scale=1.0))
            other = ready.add_request(prompt(4), params(SparseConfig(delay_step=0), block_length=5))
            for _ in range(steps):
                ready.step()
            assert ready.abort_request(request)
            while not ready.is_finished():
                ready.step()
            assert not ready.abort_request(other)
        scheduler: Any = ready._open.scheduler
        scheduler.check_integrity()
        assert scheduler._kv.num_free_pages == 8


def test_losing_the_pages_at_any_step_changes_no_token() -> None:
    asked = params(SparseConfig(retention_ratio=0.3), block_length=7, cfg_scale=0.5)
    with canvas() as ready:
        [whole] = ready.generate(prompt(11), asked)
        for lost in (1, 2, 3, 4, 6, 7, 8, 9, 12):
            done: list[ReqTrajectory] = []
            ready.add_request(prompt(11), asked, deliver=done.append)
            for step in range(60):
                if step == lost:
                    scheduler: Any = ready._open.scheduler
                    [entry] = scheduler._running.values()
                    scheduler._preempt(entry)
                if ready.is_finished():
                    break
                ready.step()
            [answer] = done
            assert answer.token_ids == whole.token_ids
            again = [step for step in answer.trajectory if step.is_prefill]
            assert len(again) <= 1
            assert all(step.rows == 2 * 31 and step.num_generated_tokens == 0 for step in again)
            assert len(answer.trajectory) == len(whole.trajectory) + len(again)


def test_between_steps_only_what_was_kept_takes_up_pages() -> None:
    """29 tokens of which 5 are decided at a time: 24 are outside, 12 are kept, two pages of eight."""
    with canvas(num_pages=4) as ready:
        kv: Any = ready._open.scheduler._kv  # type: ignore[attr-defined]
        held = []
        ready.add_request(prompt(9), params(SparseConfig(), block_length=5))
        while not ready.is_finished():
            ready.step()
            held.append(kv.num_pages - kv.num_free_pages)
    assert held == [0, 2, 2, 2, 0] * 4


def test_an_early_end_says_what_the_whole_canvas_says_and_saves_forwards() -> None:
    sparse = SparseConfig(retention_ratio=0.5)
    with canvas() as ready:
        [whole] = ready.generate(prompt(8), params(sparse, block_length=5))
    for at in (2, 7, 13):
        end = whole.token_ids[at]
        first = whole.token_ids.index(end)
        with canvas(eos_token_ids=[end]) as ready:
            [early] = ready.generate(prompt(8), params(sparse, block_length=5, ignore_eos=False))
        assert early.token_ids == whole.token_ids[:first]
        assert early.completion_reason is CompletionReason.STOP_EOS
        assert early.nfe < whole.nfe


@pytest.mark.parametrize("checkpoint", ["llada", "dream"])
def test_log_probabilities_are_those_of_the_pass_that_decided(checkpoint: str) -> None:
    asked = params(SparseConfig(retention_ratio=0.3), block_length=5, logprobs=2)
    with canvas("llada_canvas", checkpoint) as ready:
        [answer] = ready.generate(prompt(8), asked)
    assert answer.logprobs is not None
    for told, token in zip(answer.logprobs, answer.token_ids, strict=True):
        assert told is not None
        assert told.token_id == token


def test_a_cache_policy_without_a_plugin_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match="cache policy 'fancy'"):
        canvas(cache_policy="fancy")


CODE = """
import torch
from diffulex_llada.canvas.request import make_request

CALLS = []

class Latest:
    def __init__(self, *, geometry, tp):
        self.geometry = geometry

    def keep(self, layer, query, key, refresh):
        CALLS.append((layer, tuple(query.shape), tuple(key.shape), refresh.start, refresh.end, refresh.keep))
        outside = [at for at in range(len(key)) if not refresh.start <= at < refresh.end]
        return torch.tensor([outside[-refresh.keep:]] * key.shape[1])

def rewrite(step, tokens):
    if step == 3:
        tokens[1] = 90
    if step == 4:
        tokens[9] = 91
    return tokens

def make(**given):
    return make_request(**given, tokens_hook=rewrite)
"""

PLUGIN = """
@hookimpl
def diffulex_register_components(register):
    register(Component(kind="cache_policy", name="latest", factory="sparse_code:Latest"))

@hookimpl
def diffulex_register_strategies(register):
    register(DecodingStrategy(
        name="rewritten_blocks",
        req="sparse_code:make",
        pattern="diffulex_core.canvas.pattern:full_canvas",
        config_cls="diffulex_llada.canvas.options:LLaDACanvasOptions",
    ))
"""


@pytest.fixture
def plugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The installed plugins and one with a cache policy and a hook."""
    installed()  # found, and remembered for other tests, before the site is there
    site = Site(tmp_path / "site")
    site.install("sparse_plugin", PLUGIN)
    (site.path / "sparse_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(site.path)
    return Host.discover()


def test_a_plugin_may_choose_what_is_kept(plugged: Host) -> None:
    settings = {**SETTINGS, "decoding_strategy": "llada_canvas", "cache_policy": "latest"}
    asked = params(SparseConfig(retention_ratio=0.25), block_length=5)
    with Diffulex(PARITY / "checkpoints" / "llada", host=plugged, strict=True, **settings) as ready:
        [answer] = ready.generate(prompt(9), asked)
    with canvas() as ready:
        [usual] = ready.generate(prompt(9), asked)
    calls = importlib.import_module("sparse_code").CALLS
    assert calls == [
        (layer, (29, 4, 16), (29, 4, 16), start, start + 5, 6) for start in (9, 14, 19, 24) for layer in (0, 1)
    ]
    assert rows(answer) == rows(usual)
    assert answer.token_ids != usual.token_ids


def test_a_hook_that_rewrites_a_token_outside_the_block_has_it_read_anew(plugged: Host) -> None:
    """Step 3 changes the prompt, so step 4 is a full pass; step 4 changes the block, which is fed in any case."""
    settings = {**SETTINGS, "decoding_strategy": "rewritten_blocks"}
    with Diffulex(PARITY / "checkpoints" / "llada", host=plugged, strict=True, **settings) as ready:
        [answer] = ready.generate(prompt(9), params(SparseConfig(), block_length=8))
    assert rows(answer)[:7] == [29, 29, 8, 8, 29, 8, 8]
    assert MASK not in answer.token_ids
