"""Engines of several processes answer as one process does, and leave nothing behind."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from diffulex_core.engine import Diffulex
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.replicas import JoinedPlan
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import CompletionReason, StepPlan
from tests.integration.engines import engine, prompt, vectors

RECORDING = vectors("llada-d2f")
SETTINGS: dict[str, Any] = {**RECORDING["config"], "max_num_batched_tokens": 512, "device": "cpu"}
TIGHT: dict[str, Any] = {**SETTINGS, "num_pages": 8, "max_num_reqs": 3}

PROMPTS = [prompt(length, salt) for salt, length in enumerate([9, 20, 33, 5, 14, 40, 20, 7])]
MIXED = [
    SamplingParams(temperature=0.0 if salt % 2 else 0.7, top_p=0.9, max_tokens=8 + 3 * salt, seed=salt, ignore_eos=True)
    for salt in range(len(PROMPTS))
]


@pytest.fixture(scope="module")
def one() -> Iterator[Diffulex]:
    with engine(**SETTINGS) as ready:
        yield ready


@pytest.fixture(scope="module")
def port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number: int = taken.getsockname()[1]
        return number


@pytest.fixture(scope="module")
def pair(port: int) -> Iterator[Diffulex]:
    """Two ranks that share each layer."""
    with engine(**SETTINGS, tensor_parallel_size=2, master_port=port) as ready:
        yield ready


@pytest.fixture(scope="module")
def twins() -> Iterator[Diffulex]:
    """Two replicas, each with too few pages for its requests at once."""
    with engine(**TIGHT, data_parallel_size=2) as ready:
        yield ready


def recorded(ready: Diffulex) -> list[list[int]]:
    """The recorded cases, answered by an engine."""
    params = [SamplingParams(**RECORDING["sampling"], max_tokens=len(case["tokens"])) for case in RECORDING["cases"]]
    return [
        list(answer.token_ids) for answer in ready.generate([case["prompt"] for case in RECORDING["cases"]], params)
    ]


def tokens(answers: list[ReqTrajectory]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


@pytest.mark.parametrize("group", ["pair", "twins"])
def test_recorded_tokens_are_reproduced_by_several_processes(group: str, request: pytest.FixtureRequest) -> None:
    assert recorded(request.getfixturevalue(group)) == [case["tokens"] for case in RECORDING["cases"]]


def test_many_requests_decode_alike_on_one_process_two_ranks_and_two_replicas(
    one: Diffulex, pair: Diffulex, twins: Diffulex
) -> None:
    wanted = list(one.generate(PROMPTS, MIXED))
    assert len({answer.token_ids for answer in wanted}) == len(PROMPTS)
    assert tokens(list(pair.generate(PROMPTS, MIXED))) == tokens(wanted)
    shared = list(twins.generate(PROMPTS, MIXED))
    assert tokens(shared) == tokens(wanted)
    assert sum(answer.preemptions for answer in shared) > 0


def test_two_engines_of_processes_take_turns_and_an_abort_concerns_one_request(
    one: Diffulex, pair: Diffulex, twins: Diffulex
) -> None:
    wanted = tokens(list(one.generate(PROMPTS[:4], MIXED[:4])))
    engines = (pair, twins)
    found: list[dict[int, ReqTrajectory]] = [{}, {}]
    ids = [
        [each.add_request(text, params) for text, params in zip(PROMPTS[:4], MIXED[:4], strict=True)]
        for each in engines
    ]
    for each, mine in zip(engines, ids, strict=True):
        each.step()
        assert each.abort_request(mine[2])
    while not (pair.is_finished() and twins.is_finished()):
        for each, ended in zip(engines, found, strict=True):
            ended.update({answer.req_id: answer for answer in each.step().finished})
    for mine, ended in zip(ids, found, strict=True):
        answers = [ended[number] for number in mine]
        assert answers[2].completion_reason is CompletionReason.ABORTED
        assert [answer.token_ids for at, answer in enumerate(answers) if at != 2] == [*wanted[:2], wanted[3]]


def test_replicas_share_the_requests_and_step_together(twins: Diffulex) -> None:
    plans: list[StepPlan] = []
    ids = [twins.add_request(text, params) for text, params in zip(PROMPTS, MIXED, strict=True)]
    while not twins.is_finished():
        plan = twins.step().plan
        assert plan is not None
        plans.append(plan)
    assert {window.request_id for plan in plans for window in plan.windows} == set(ids)
    first = plans[0]
    assert isinstance(first, JoinedPlan)
    assert list(first.parts) == [0, 1]
    homes: dict[int, set[int]] = {}
    for plan in plans:
        assert isinstance(plan, JoinedPlan)
        for replica, part in plan.parts.items():
            for window in part.windows:
                homes.setdefault(window.request_id, set()).add(replica)
    assert all(len(home) == 1 for home in homes.values())


def test_workers_use_no_shared_memory_and_no_port_that_others_can_reach(pair: Diffulex) -> None:
    workers = psutil.Process().children()
    assert len([worker for worker in workers if worker.is_running()]) >= 2
    for process in (psutil.Process(), *workers):
        names = [each.path for each in process.open_files()]
        if psutil.LINUX:
            names += [each.path for each in process.memory_maps()]
        assert not [name for name in names if name.startswith("/dev/shm") and Path(name).exists()]
        heard = [each.laddr.ip for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        assert set(heard) <= {"127.0.0.1", "::1"}
    assert len(pair.generate(PROMPTS[0], MIXED[0])) == 1


def test_the_rendezvous_port_that_was_asked_for_is_used(port: int, pair: Diffulex) -> None:
    assert pair.config.parallel.master_port == port
    heard = [each.laddr.port for worker in psutil.Process().children() for each in worker.net_connections("tcp")]
    assert port in heard


def test_a_closed_engine_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    me = psutil.Process()
    before = {child.pid for child in me.children(recursive=True)}
    descriptors, threads = me.num_fds(), threading.active_count()
    made = engine(**SETTINGS, executor="spawned")
    [worker] = [child for child in me.children(recursive=True) if child.pid not in before]
    made.add_request(PROMPTS[0], MIXED[0])
    made.step()
    made.exit()
    made.close()
    assert not worker.is_running()
    assert {child.pid for child in me.children(recursive=True)} == before
    assert me.num_fds() == descriptors
    assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == []
