"""The machine of the strategy fast_dllm_v2 on the network of hashes: modes, spans, and every schedule alike."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.errors import PromptTooLong
from diffulex_core.testing.fakes import EOS, MASK, WORDS
from diffulex_core.types import CompletionReason, Decision, Span
from diffulex_fastdllm.request import DualCacheRequest
from tests.core.oracles import Answer, Ask
from tests.core.serving import ask as ask_of, asks
from tests.families.dual_cache_serving import DualService, Watched, watched
from tests.families.oracle_dual_cache import DualSetting, HashMemory, decode_dual_cache

PLAIN = DualSetting(
    sub_size=4, sub_blocks=2, use_block_cache=True, mask=MASK, eos=frozenset({EOS}), max_model_len=64, accept=0.9
)
SETTINGS = st.builds(
    DualSetting,
    sub_size=st.sampled_from([1, 2, 4]),
    sub_blocks=st.sampled_from([2, 3]),
    use_block_cache=st.booleans(),
    mask=st.just(MASK),
    eos=st.just(frozenset({EOS})),
    max_model_len=st.sampled_from([18, 40]),
    accept=st.sampled_from([0.3, 0.6, 0.9]),
)


def expected(setting: DualSetting, ask: Ask, lost: list[int]) -> tuple[Answer, list[str]]:
    return decode_dual_cache(setting, ask, HashMemory(ask.seed), lost)


def check(setting: DualSetting, ask: Ask, request: Watched) -> None:
    answer, modes = expected(setting, ask, request.lost)
    assert (tuple(request.output_tokens.tolist()), request.completion) == (answer.tokens, answer.reason)
    assert request.modes == modes
    assert MASK not in request.output_tokens


def take(span: Span, count: int) -> Decision:
    """Accept the first `count` positions of the group."""
    positions = np.concatenate([group.positions for group in span.groups])
    return Decision(
        positions=positions,
        tokens=np.full(len(positions), 3),
        confidence=np.full(len(positions), 0.5, dtype=np.float32),
        accepted=np.arange(len(positions)) < count,
    )


def drive(request: Watched, count: int) -> Watched:
    """Step the request to its end without a scheduler, `count` tokens a step."""
    stored = 0
    while request.completion is None:
        span = request.plan(stored, None)
        assert span is not None
        request.apply(span, take(span, count))
        stored = span.store_until
        assert len(request.fed) < 100
    return request


def test_a_block_is_passed_over_for_every_sub_block_refined_in_between_and_committed_once() -> None:
    request = drive(watched(PLAIN, ask_of(8, max_tokens=16)), 2)
    block = ["full", "refine", "full", "refine", "commit"]
    assert request.modes == ["seed", *block, *block[:-1]]
    spans = [(span.start, len(span.tokens), span.store_until, span.visible_end) for span in request.fed]
    assert spans[:7] == [
        (0, 8, 8, None), (8, 8, 8, None), (8, 4, 8, 16), (8, 8, 8, None), (12, 4, 8, 16), (8, 8, 16, None),
        (16, 8, 16, None),
    ]  # fmt: skip


def test_the_first_position_of_a_block_is_decided_by_the_last_row_before_it() -> None:
    request = drive(watched(PLAIN, ask_of(8, max_tokens=9)), 4)
    seeds = [span for span, mode in zip(request.fed, request.modes, strict=True) if mode in ("seed", "commit")]
    assert [(span.groups[0].positions.tolist(), span.groups[0].rows.tolist()) for span in seeds] == [
        ([8], [7]),
        ([16], [7]),
    ]
    assert all(span.groups[0].greedy and span.groups[0].accept_threshold < 0 for span in seeds)


def test_the_first_pass_over_the_answer_rides_in_the_prefills_last_forward() -> None:
    request = drive(watched(PLAIN, ask_of(13, max_tokens=3)), 9)
    assert [(span.start, len(span.tokens), span.catch_up) for span in request.fed] == [(0, 16, 8)]
    assert request.modes == ["full"]


def test_only_rows_that_decide_something_go_through_the_head() -> None:
    request = drive(watched(PLAIN, ask_of(9, max_tokens=7)), 1)
    groups = [span.groups[0] for span in request.fed]
    assert [group.positions.tolist() for group in groups[:4]] == [[9, 10, 11], [10, 11], [11], [12, 13, 14, 15]]
    assert [group.rows.tolist() for group in groups[:4]] == [[8, 9, 10], [1, 2], [2], [3, 4, 5, 6]]


def test_a_block_past_the_limit_keeps_its_width_and_no_block_starts_there() -> None:
    request = drive(watched(PLAIN, ask_of(8, max_tokens=6)), 2)
    assert len(request.output_tokens) == 6
    assert request.completion is CompletionReason.LENGTH_TOKENS
    assert {span.end for span in request.fed} <= {8, 12, 16}
    assert "commit" not in request.modes


def test_without_the_block_cache_every_pass_is_over_the_whole_block() -> None:
    request = drive(watched(attrs.evolve(PLAIN, use_block_cache=False), ask_of(9, max_tokens=9)), 2)
    assert set(request.modes) == {"full", "commit"}
    assert {len(span.tokens) for span in request.fed[1:]} == {8}


def test_a_decided_position_outside_the_group_is_refused() -> None:
    request = watched(PLAIN, ask_of(9))
    span = request.plan(0, None)
    assert span is not None
    decision = attrs.evolve(take(span, 1), positions=np.array([13, 14, 15]))
    with pytest.raises(ValueError, match="does not answer"):
        request.apply(span, decision)


def test_the_canvas_shows_sub_blocks() -> None:
    request = watched(PLAIN, ask_of(9))
    canvas = request.canvas
    assert (canvas.start, canvas.block_size, canvas.committed) == (9, 4, 0)
    assert canvas.running_blocks == ((2, "active"), (3, "active"))
    assert canvas.decided.tolist() == [False] * 7


@given(SETTINGS, st.lists(asks(), min_size=1, max_size=4), st.data())
@settings(max_examples=100)
def test_every_schedule_gives_the_tokens_and_modes_of_a_request_alone(
    setting: DualSetting, many: list[Ask], data: st.DataObject
) -> None:
    """Batches, budgets, page sizes, prefix hits and preemptions change nothing but where the machine starts over."""
    many = [ask for ask in many if len(ask.prompt) < setting.max_model_len]
    page_size = setting.sub_size * data.draw(st.sampled_from([1, 2, 3, setting.sub_blocks]))
    requests = [watched(setting, ask, at) for at, ask in enumerate(many)]
    most = max((request.most_slots() for request in requests), default=0)
    budget = setting.block_size + data.draw(st.sampled_from([0, 0, 1, 5, 30]))
    service = DualService.of(
        setting,
        num_pages=-(-most // page_size) + data.draw(st.sampled_from([0, 1, 2, 50])),
        page_size=page_size,
        budget=budget,
        max_num_reqs=data.draw(st.integers(1, 4)),
        prefix_caching=data.draw(st.booleans()),
    )
    service.run(requests)
    assert all(rows <= budget for rows in service.rows)
    for ask, request in zip(many, requests, strict=True):
        check(setting, ask, request)


@given(SETTINGS, st.lists(asks(), min_size=2, max_size=4), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12))))
@settings(max_examples=40)
def test_requests_that_are_aborted_at_any_time_disturb_nobody(
    setting: DualSetting, many: list[Ask], aborts: list[tuple[int, int]]
) -> None:
    many = [ask for ask in many if len(ask.prompt) < setting.max_model_len]
    requests = [watched(setting, ask, at) for at, ask in enumerate(many)]
    most = max((request.most_slots() for request in requests), default=0)
    service = DualService.of(setting, num_pages=most // setting.sub_size + 3, budget=setting.block_size + 5)
    for request in requests:
        service.scheduler.add(request)
    step = 0
    while service.step() is not None:
        step += 1
        for request_id in (request_id for request_id, when in aborts if when == step):
            service.scheduler.abort(request_id)
    assert service.cache.num_free_pages == service.cache.num_pages
    for ask, request in zip(many, requests, strict=True):
        if request.completion is CompletionReason.ABORTED:
            output = request.output_tokens.tolist()
            assert tuple(output) == expected(setting, ask, request.lost)[0].tokens[: len(output)]
        else:
            check(setting, ask, request)


@given(SETTINGS, asks(), st.integers(1, 12))
def test_an_end_by_forwards_returns_a_decided_prefix(setting: DualSetting, ask: Ask, max_nfe: int) -> None:
    capped, free = watched(setting, ask, max_nfe=max_nfe), watched(setting, ask)
    DualService.of(setting).run([capped])
    DualService.of(setting).run([free])
    assert capped.nfe <= max_nfe
    short, full = capped.output_tokens.tolist(), free.output_tokens.tolist()
    assert short == full[: len(short)]


@given(SETTINGS, asks(), st.integers(1, 11))
def test_fewer_tokens_are_a_prefix_of_more(setting: DualSetting, ask: Ask, fewer: int) -> None:
    requests = [watched(setting, attrs.evolve(ask, max_tokens=count)) for count in (fewer, 12)]
    for request in requests:
        DualService.of(setting).run([request])
    short, long = (request.output_tokens.tolist() for request in requests)
    assert short == long[: len(short)]


def test_a_prompt_that_is_all_in_the_cache_feeds_its_last_row_only() -> None:
    service = DualService.of(PLAIN)
    first, second = (watched(PLAIN, ask_of(16, seed=seed), seed) for seed in (0, 1))
    service.run([first])
    service.run([second])
    [span, *_] = second.fed
    assert (span.start, len(span.tokens), span.store_from, span.store_until) == (15, 1, 16, 16)
    check(PLAIN, ask_of(16, seed=1), second)


def test_blocks_of_an_answer_are_shared_with_a_prompt_that_continues_it() -> None:
    service = DualService.of(PLAIN)
    first = watched(PLAIN, ask_of(8, max_tokens=30))
    service.run([first])
    prompt = (*ask_of(8).prompt, *first.output_tokens[:24].tolist(), 1)
    again = Ask(prompt=prompt, seed=5, max_tokens=6, ignore_eos=True)
    second = watched(PLAIN, again, 1)
    service.run([second])
    assert second.fed[0].start == 32
    check(PLAIN, again, second)


def test_a_preempted_request_goes_on_with_a_full_pass() -> None:
    setting = attrs.evolve(PLAIN, accept=0.99)
    asked = [ask_of(8 + seed, seed=seed, max_tokens=40) for seed in range(1, 7)]
    requests = [watched(setting, ask, at) for at, ask in enumerate(asked)]
    DualService.of(setting, num_pages=9, page_size=8).run(requests)
    resumed = [(request, step) for request in requests for step in request.lost if step]
    kept_pages = [expected(setting, ask, [])[1] for ask in asked]
    assert any(kept_pages[request.request_id][step : step + 1] == ["refine"] for request, step in resumed)
    assert all(request.modes[step] != "refine" for request, step in resumed)
    for ask, request in zip(asked, requests, strict=True):
        check(setting, ask, request)


def test_a_decided_block_is_known_only_once_it_is_stored() -> None:
    request = watched(PLAIN, ask_of(8, max_tokens=24))
    service = DualService.of(PLAIN)
    service.scheduler.add(request)
    while request.mode.value != "commit":
        assert len(request.known_tokens) == 8
        service.step()
    assert request.canvas.decided.all()
    assert len(request.known_tokens) == 8, "a resumed request must commit it, whoever has stored the same tokens"
    service.step()
    assert len(request.known_tokens) == 16


def test_a_resumed_request_without_block_cache_answers_as_if_nothing_had_happened() -> None:
    setting = attrs.evolve(PLAIN, use_block_cache=False)
    asked = [ask_of(9, seed=seed, max_tokens=40) for seed in range(3)]
    requests = [watched(setting, ask, at) for at, ask in enumerate(asked)]
    DualService.of(setting, num_pages=7, page_size=8).run(requests)
    assert any(request.lost for request in requests)
    for ask, request in zip(asked, requests, strict=True):
        assert tuple(request.output_tokens.tolist()) == expected(setting, ask, [])[0].tokens


@pytest.mark.parametrize("steps", range(1, 9))
def test_an_abort_frees_the_pages_and_leaves_the_others_alone(steps: int) -> None:
    asked = [ask_of(length, seed=length, max_tokens=20) for length in (8, 9)]
    requests = [watched(PLAIN, ask, at) for at, ask in enumerate(asked)]
    service = DualService.of(PLAIN)
    for request in requests:
        service.scheduler.add(request)
    for _ in range(steps):
        service.step()
    assert service.scheduler.abort(0)
    assert MASK not in requests[0].output_tokens
    service.run([])
    assert service.cache.num_free_pages == service.cache.num_pages
    check(PLAIN, asked[1], requests[1])


def test_windows_that_do_not_fit_together_take_turns() -> None:
    requests = [watched(PLAIN, ask_of(8, seed=seed, max_tokens=24), seed) for seed in range(3)]
    service = DualService.of(PLAIN, budget=8)
    for request in requests:
        service.scheduler.add(request)
    waits = dict.fromkeys(range(3), 0)
    while (fed := service.step()) is not None:
        waits = {at: 0 if at in fed or requests[at].completion else waits[at] + 1 for at in waits}
        assert max(waits.values()) <= 3
    assert all(rows <= 8 for rows in service.rows)


def test_requests_in_different_modes_share_a_forward() -> None:
    requests = [watched(PLAIN, ask_of(length, seed=length, max_tokens=24), length) for length in (8, 9)]
    service = DualService.of(PLAIN)
    for request in requests:
        service.scheduler.add(request)
    mixed = 0
    while service.step() is not None:
        last = {request.modes[-1] for request in requests if request.completion is None}
        mixed += len(last) > 1
    assert mixed > 3


def test_a_block_that_cannot_fit_the_budget_is_refused_with_the_number_needed() -> None:
    service = DualService.of(PLAIN, budget=7)
    with pytest.raises(PromptTooLong, match="at least 8"):
        service.scheduler.add(watched(PLAIN, ask_of(9)))


@given(SETTINGS, asks())
def test_forwards_and_rows_are_never_more_than_a_prefill_and_the_passes(setting: DualSetting, ask: Ask) -> None:
    """The prompt's whole blocks ride in the first pass, or take a forward of their own that decides the first token."""
    request = watched(setting, ask)
    DualService.of(setting, prefix_caching=False).run([request])
    passes = [mode for mode in request.modes if mode != "seed"]
    rows = sum(setting.sub_size if mode == "refine" else setting.block_size for mode in passes)
    assert request.nfe == len(passes) + ("seed" in request.modes)
    assert sum(len(span.tokens) for span in request.fed) == rows + len(ask.prompt) // setting.block_size * (
        setting.block_size
    )


def test_every_word_may_be_an_answer() -> None:
    """The network of hashes decides each of its words somewhere, so the comparisons above see them all."""
    requests = [watched(PLAIN, ask_of(9, seed=seed, max_tokens=40), seed) for seed in range(8)]
    DualService.of(PLAIN).run(requests)
    assert {int(token) for request in requests for token in request.output_tokens} == set(range(WORDS))
    assert isinstance(requests[0], DualCacheRequest)
