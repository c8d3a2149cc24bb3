"""Random requests of any strategy that come, lose their pages and are withdrawn while everything is scarce."""

from __future__ import annotations

from math import isclose
from random import Random
from typing import Any

import attrs

from diffulex_core.errors import PromptTooLong
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.sparse import SparseConfig
from diffulex_core.types import CompletionReason
from tests.integration.matrix import Case, Checkpoints, host, prompt
from tests.integration.watched import Watched

LONGEST_PROMPT, MOST_TOKENS = 30, 20


@attrs.frozen(kw_only=True)
class Asked:
    """A request and what became of it."""

    request_id: int
    prompt: list[int]
    params: SamplingParams


@attrs.define(kw_only=True)
class Tally:
    """What happened, so that a run can show that it was not quiet."""

    requests: int = 0
    steps: int = 0
    refused: int = 0
    aborted: int = 0
    preemptions: int = 0
    cached: int = 0
    compared: int = 0
    reasons: set[str] = attrs.field(factory=set)

    def add(self, other: Tally) -> None:
        for field in attrs.fields(Tally):
            mine, its = getattr(self, field.name), getattr(other, field.name)
            setattr(self, field.name, mine | its if isinstance(mine, set) else mine + its)


def turmoil(case: Case, checkpoints: Checkpoints, random: Random, *, requests: int, compared: float = 0.2) -> Tally:
    """Serve random requests on a random engine; each step is watched, and some answers are compared with lone ones.

    Args:
        random: where all choices come from.
        requests: how many are handed in.
        compared: share of the answers that are compared.
    """
    tally = Tally(requests=requests)
    settings = scarce(random, case)
    left = requests
    with Watched(case, checkpoints, **settings) as busy:
        asked: dict[int, Asked] = {}
        while left or busy.engine._tickets:
            for _ in range(min(left, random.choice((0, 0, 1, 1, 2, 5)))):
                left -= 1
                each = random_request(random, case, list(busy.records.values()), asked)
                try:
                    number = busy.add(each.prompt, each.params)
                except PromptTooLong:
                    tally.refused += 1
                    busy.parts.scheduler.check_integrity()
                else:
                    asked[number] = attrs.evolve(each, request_id=number)
            if busy.engine._tickets and random.random() < 0.06:
                tally.aborted += busy.engine.abort_request(random.choice(list(busy.engine._tickets)))
                busy.parts.scheduler.check_integrity()
            if busy.engine._tickets and random.random() < 0.08:
                busy.preempt(random.choice(list(busy.engine._tickets)))
            busy.step()
            assert busy.steps < 200 * (requests + 1), "no end in sight"
        busy.finish()
        busy.check_nothing_is_left()
        records, tally.steps = busy.records, busy.steps
    tally.preemptions = busy.lost.total()
    tally.cached = sum(record.cached_tokens for record in records.values())
    tally.reasons = {record.completion_reason.value for record in records.values()}
    assert set(records) == set(asked), "a request has no record"
    with Watched(case, checkpoints, enable_prefix_caching=False, max_model_len=settings["max_model_len"]) as quiet:
        for number, each in asked.items():
            if random.random() < compared and (case.variant.resumes or not busy.lost[number]):
                tally.compared += compare(case, records[number], each, quiet)
    return tally


def scarce(random: Random, case: Case) -> dict[str, Any]:
    """Settings of an engine that lacks something; without those that the strategy decides."""
    page_size = random.choice((4, 8, 16))
    # A request of this size needs at most 64 slots, or twice that where it is guided.
    slots = random.choice((64, 96, 160, 512))
    settings = {
        "page_size": page_size,
        "num_pages": slots // page_size,
        "max_num_batched_tokens": random.choice((16, 24, 41, 130, 256)),
        "max_num_reqs": random.choice((1, 2, 5, 128)),
        "enable_prefix_caching": random.random() < 0.8,
        "max_logits_tokens": random.choice((None, None, 2, 7)),
        "max_model_len": random.choice((64, 64, 40)),
    }
    forced = host().strategies.get(case.recipe[0]).forces
    return {name: value for name, value in settings.items() if name not in forced}


def random_request(random: Random, case: Case, earlier: list[ReqTrajectory], asked: dict[int, Asked]) -> Asked:
    """A request; its prompt often begins as others do, or goes on where an answer ended."""
    length = random.choice((random.randint(1, LONGEST_PROMPT), 4, 8, 16, 24))
    text = prompt(length, random.choice((0, 0, 1, random.randrange(1000))))
    if earlier and random.random() < 0.3:
        record = random.choice(earlier)
        turn = [*asked[record.req_id].prompt, *record.token_ids, *text[:3]]
        text = turn if len(turn) <= LONGEST_PROMPT else text
    canvas = case.variant.canvas
    given = {**common(random), **(of_canvas(random, case.recipe[0]) if canvas else {})}
    return Asked(request_id=-1, prompt=text, params=SamplingParams(**given))


def common(random: Random) -> dict[str, Any]:
    """Parameters that every strategy knows."""
    given: dict[str, Any] = {
        "temperature": random.choice((0.0, 0.0, 0.6, 1.0, 2.0)),
        "seed": random.randrange(2**40),
        "max_tokens": random.randint(1, MOST_TOKENS),
        "ignore_eos": random.random() < 0.6,
    }
    options: list[dict[str, Any]] = [
        {"top_p": 0.8},
        {"top_k": random.randint(1, 50)},
        {"min_p": 0.1},
        {"max_nfe": random.randint(1, 12)},
        {"max_repetition_run": random.randint(2, 4)},
        {"stop_token_ids": tuple(random.sample(range(256), random.choice((1, 30))))},
        {"stop": (chr(random.randrange(33, 127)), "zq")},
        {"logit_bias": {random.randrange(256): random.choice((4.0, -3.0, float("-inf"))) for _ in range(3)}},
        {"logprobs": random.randint(0, 3)},
        {"confidence": random.choice(("margin", "neg_entropy"))},
        {"thresholds": {"accept_threshold": random.choice((0.0, 0.1, 0.9, 1.0))}},
        {"thresholds": {"add_block_threshold": random.choice((0.0, 0.5, 1.0)), "semi_complete_threshold": 0.2}},
    ]
    for option in random.sample(options, random.choice((0, 0, 1, 2, 3))):
        given |= option
    return given


def of_canvas(random: Random, strategy: str) -> dict[str, Any]:
    """Parameters of fixed-length generation."""
    given: dict[str, Any] = {"steps": random.randint(1, 12)}
    if random.random() < 0.5:
        given["gen_length"] = random.randint(1, 10)
    if random.random() < 0.3:
        given["cfg_scale"] = random.choice((0.0, 0.5, 2.0))
    if random.random() < 0.3:
        given["sparse"] = SparseConfig(
            enabled=random.random() < 0.9,
            retention_ratio=random.choice((0.1, 0.5, 1.0)),
            delay_step=random.randint(0, 3),
            default_block_len=random.choice((4, 32)),
            head_select=random.random() < 0.5,
            pool_kernel=random.choice((1, 3)),
            refresh_every=random.choice((None, 1, 3)),
            refresh_drift=random.choice((None, 0.3)),
        )
    if random.random() < 0.2:
        given[random.choice(("suppress_eos", "defer_eos"))] = True
    if strategy == "llada_canvas":
        own = ({"block_length": random.randint(1, 12)}, {"remasking": "random"}, {"alg": "confidence_threshold"})
        return given | random.choice(({}, *own))
    algorithms = ("origin", "maskgit_plus", "topk_margin", "entropy", "confidence_threshold")
    return given | {"alg": random.choice(algorithms), "alg_temp": random.choice((None, 0.5)), "eps": 0.01}


def compare(case: Case, record: ReqTrajectory, asked: Asked, quiet: Watched) -> bool:
    """Answer a request once more, without company; False when the answers cannot be told from each other.

    Pieces of a prompt and replays count towards `max_nfe`, so the lone answer knows no such limit, and one that was cut
    short is a prefix of it.
    """
    cut = record.completion_reason in (CompletionReason.ABORTED, CompletionReason.NFE_LIMIT)
    if cut and case.variant.revises:
        return False
    [alone] = quiet.serve([asked.prompt], [attrs.evolve(asked.params, max_nfe=None)])
    if cut:
        assert record.token_ids == alone.token_ids[: len(record.token_ids)]
        return True
    assert record.token_ids == alone.token_ids
    assert record.text == alone.text
    assert record.completion_reason is alone.completion_reason
    for ours, its in zip(record.logprobs or (), alone.logprobs or (), strict=True):
        # A row that is fed again beside cached pages is rounded alone; the token is the same, the last bit may not be.
        assert (ours is None) == (its is None)
        assert ours is None or its is None or isclose(ours.logprob, its.logprob, abs_tol=1e-4)
    return True
