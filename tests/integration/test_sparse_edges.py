"""The sparse cache at the ends of its ranges: what is asked for there is served, and nobody else pays for it."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest

from diffulex_core.canvas.request import TokensHook
from diffulex_core.engine import Diffulex
from diffulex_core.errors import ConfigError
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.pattern import IntArray
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.sparse import SparseConfig
from diffulex_llada.canvas.request import make_request
from tests.integration.engines import MASK, engine, prompt


def params(sparse: SparseConfig | None = None, **settings: Any) -> SamplingParams:
    given = {"temperature": 0.0, "ignore_eos": True, "gen_length": 20, "steps": 20, "block_length": 5, **settings}
    return SamplingParams(**given, sparse=sparse)


def canvas(strategy: str = "llada_canvas", checkpoint: str = "llada", **settings: Any) -> Diffulex:
    return engine(checkpoint, **{"decoding_strategy": strategy, "page_size": 8, **settings})


def rows(answer: ReqTrajectory) -> list[int]:
    return [step.rows for step in answer.trajectory]


@pytest.mark.parametrize("length", [1, 9], ids=["a prompt of one token", "a prompt of nine"])
def test_neighbours_beyond_the_sequence_cost_nothing_however_many_are_asked_for(length: int) -> None:
    """One request must not be able to stop the engine, or to keep it busy for longer than its own rows take."""
    reach = 2 * (length + 15) - 1
    with canvas() as ready:
        answers = ready.generate(
            [prompt(length)] * 4,
            [params(SparseConfig(retention_ratio=0.3, pool_kernel=width)) for width in (reach, 2**31 + 1, 10**30 + 1)]
            + [params()],
        )
    assert [answer.error for answer in answers] == [None] * 4
    assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids


def test_a_position_that_a_hook_takes_back_in_a_finished_block_is_read_anew() -> None:
    """Nothing was kept past the block's last step, and its pages may be somebody else's by now."""

    def take_back(step: int | None, tokens: IntArray) -> IntArray:
        if step == 4:
            tokens[11] = MASK
        return tokens

    hooked = rows(rewritten(take_back, "llada", SparseConfig(delay_step=0)))
    # The block's one mask makes a full pass at once, since no step follows that would read anything.
    assert hooked == [29, 5, 5, 5, 5, 29] + [29, 5, 5, 5, 5] * 3


def test_the_row_before_the_block_is_fed_when_a_hook_takes_its_first_position_back() -> None:
    """`force_first` decides that position first, and a shifted family needs the row before it for no other."""

    def take_back(step: int | None, tokens: IntArray) -> IntArray:
        if step == 1:
            tokens[9] = MASK
        return tokens

    config = SparseConfig(delay_step=0, force_first=True)
    untouched, hooked = (rewritten(hook, "dream", config) for hook in (lambda _, tokens: tokens, take_back))
    assert rows(untouched) == [29, 5, 5, 5, 5] * 4
    # Four masks for the three steps that are left of the block, so one decides two.
    assert rows(hooked) == [29, 5, 6, 5, 5, *rows(untouched)[5:]]
    assert MASK not in hooked.token_ids


def test_the_first_position_of_a_block_comes_first_in_a_random_order_too() -> None:
    config = SparseConfig(delay_step=0, force_first=True)
    with canvas(checkpoint="dream") as ready:
        answers = ready.generate([prompt(9)] * 3, [params(config, remasking="random", seed=seed) for seed in range(3)])
    assert [rows(answer) for answer in answers] == [[29, 5, 5, 5, 5] * 4] * 3


def rewritten(hook: TokensHook, checkpoint: str, config: SparseConfig) -> ReqTrajectory:
    """The answer of a request whose sequence the hook rewrites."""
    done: list[ReqTrajectory] = []
    with canvas(checkpoint=checkpoint) as ready:
        ready.submit(
            lambda number: make_request(
                request_id=number,
                prompt=np.array(prompt(9)),
                params=params(config, seed=0),
                context=ready._open.req_context,
                tokens_hook=hook,
            ),
            deliver=done.append,
        )
        while not ready.is_finished():
            ready.step()
    [answer] = done
    return answer


@pytest.mark.parametrize(
    ("strategy", "checkpoint", "settings", "block"),
    [
        ("llada_canvas", "llada", {"alg": "confidence_threshold", "steps": 4}, [29, 5, 5, 5, 5] * 4),
        (
            "dream_canvas",
            "dream",
            {"alg": "confidence_threshold", "steps": 2, "block_length": None},
            [29, *[21] * 19],
        ),
    ],
    ids=["llada", "dream"],
)
def test_pairs_are_kept_as_long_as_the_threshold_may_leave_a_mask(
    strategy: str, checkpoint: str, settings: dict[str, Any], block: list[int]
) -> None:
    """No confidence reaches 1, so every step decides one position, whatever the steps that were asked for."""
    asked = params(SparseConfig(delay_step=0), thresholds={"accept_threshold": 1.0}, **settings)
    with canvas(strategy, checkpoint) as ready:
        assert rows(ready.generate(prompt(9), asked)[0]) == block


def test_pairs_are_kept_as_long_as_origin_may_leave_a_mask() -> None:
    """Each mask has its own chance; an end token waits for the last step, and here every token is one."""
    asked = params(SparseConfig(delay_step=0), alg="origin", block_length=None, seed=3)
    with canvas("dream_canvas", "dream") as ready:
        first, *later = rows(ready.generate(prompt(9), asked)[0])
    assert (first, set(later)) == (29, {21})
    with canvas("dream_canvas", "dream", eos_token_ids=list(range(MASK))) as ready:
        alone = [attrs.evolve(asked, gen_length=1, steps=8, defer_eos=True, seed=seed) for seed in range(6)]
        forwards = [rows(answer) for answer in ready.generate([prompt(9)] * 6, alone)]
    assert all(each == [10] + [2] * (len(each) - 1) for each in forwards)
    assert any(len(each) > 1 for each in forwards)


def test_a_rule_for_blocks_is_refused_at_once_where_no_request_could_have_it() -> None:
    with pytest.raises(ConfigError, match=r"sparse\.force_first is True, a rule for blocks.*Leave it out, or choose"):
        canvas("dream_canvas", "dream", sparse=SparseConfig(force_first=True))
    with canvas("dream_canvas", "dream", sparse=SparseConfig(enabled=False, force_first=True)) as ready:
        assert ready.generate(prompt(9), params(block_length=None))[0].error is None


def test_a_configuration_that_is_passed_to_be_off_needs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with canvas(sparse=SparseConfig(enabled=False)):
        assert "sparse" not in caplog.text
    with canvas(sparse={"retention_ratio": 0.3}):
        assert caplog.text.count("has no effect while sparse.enabled is off") == 1
