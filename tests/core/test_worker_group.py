"""A group of workers as the engine sees it: its calls, and what may happen to them. The workers here load nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from diffulex_core.distributed import group as group_module, process
from diffulex_core.distributed.group import WorkerGroup
from diffulex_core.distributed.messages import Assignment
from diffulex_core.errors import PeerLost, WorkerError

PROGRAM = """
import sys
sys.path[:] = sys.argv[2:]
import os, signal, time
from multiprocessing.connection import Connection
from diffulex_core.distributed.messages import Answer, Failure
from diffulex_core.errors import PeerLost

def do(deed, rank):
    if deed == "lonely":
        raise PeerLost("the others are gone", rank=rank)
    if deed == "break":
        raise ValueError("broken")
    if deed == "die":
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if deed == "dawdle":
        time.sleep(0.5)
    return rank, deed

pipe = Connection(int(sys.argv[1]))
rank, assignment = pipe.recv().rank, pipe.recv()
pipe.send(Answer(serial=0))
while (call := pipe.recv()) is not None:
    try:
        pipe.send(Answer(serial=call.serial, value=do(call.arguments[rank], rank)))
    except Exception as error:
        pipe.send(Failure.of(call.serial, error, replica=0, rank=rank))
"""


@pytest.fixture(autouse=True)
def light_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_BOOT", PROGRAM)
    monkeypatch.setattr(group_module, "CAUSE_SECONDS", 1.0)


def made(size: int, timeout: float = 60.0) -> WorkerGroup:
    nothing: Any = None
    task = Assignment(
        blueprint=nothing, device=nothing, meeting=None, listener=None, sharers=1, threads=None, progress=False
    )
    return WorkerGroup([task] * size, replica=0, manifest=(), timeout=timeout)


@pytest.fixture
def pair() -> Iterator[WorkerGroup]:
    group = made(2, timeout=1.0)
    yield group
    group.close()


def asked(group: WorkerGroup, *deeds: str) -> list[Any]:
    return group.call("execute", *deeds)


def pids(group: WorkerGroup) -> list[int]:
    return [worker.process.pid for worker in group._workers]


def assert_ended(group: WorkerGroup) -> None:
    assert all(worker.process.returncode is not None for worker in group._workers)
    with pytest.raises(WorkerError, match="no workers any more"):
        asked(group, "work", "work")


def test_all_ranks_are_called_and_answer_in_their_order(pair: WorkerGroup) -> None:
    assert asked(pair, "dawdle", "work") == [(0, "dawdle"), (1, "work")]
    assert asked(pair, "a", "b") == [(0, "a"), (1, "b")]
    pair.close()
    assert [worker.process.returncode for worker in pair._workers] == [0, 0]
    assert_ended(pair)


def test_one_error_is_raised_and_the_others_are_ended(pair: WorkerGroup) -> None:
    with pytest.raises(ValueError, match="broken"):
        asked(pair, "dawdle", "break")
    assert_ended(pair)


def test_a_lone_worker_goes_on_after_an_error() -> None:
    group = made(1)
    with pytest.raises(ValueError, match="broken"):
        asked(group, "break")
    assert asked(group, "work") == [(0, "work")]
    group.close()


def test_a_rank_that_cannot_be_started_leaves_none_of_the_others_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[process.WorkerProcess] = []
    start = process.WorkerProcess.start

    def one_only(**given: Any) -> process.WorkerProcess:
        if started:
            raise OSError("no process is left")
        started.append(start(**given))
        return started[0]

    monkeypatch.setattr(process.WorkerProcess, "start", one_only)
    # The error keeps the half-made group alive, as it does in a debugger or a notebook.
    with pytest.raises(OSError, match="no process is left") as caught:
        made(2)
    assert caught.tb is not None
    assert started[0].process.returncode is not None


def test_a_death_explains_why_another_rank_is_lonely(pair: WorkerGroup) -> None:
    with pytest.raises(WorkerError, match=r"rank 1 .*SIGKILL while executing a step") as caught:
        asked(pair, "lonely", "die")
    assert (caught.value.rank, caught.value.exit_code) == (1, -signal.SIGKILL)
    assert_ended(pair)


def test_a_rank_that_is_lonely_without_a_cause_is_believed(pair: WorkerGroup) -> None:
    with pytest.raises(PeerLost, match="the others are gone"):
        asked(pair, "lonely", "stop")
    assert_ended(pair)


def test_a_worker_that_dies_at_rest_is_found_in_the_next_call(pair: WorkerGroup) -> None:
    asked(pair, "work", "work")
    os.kill(pids(pair)[0], signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"rank 0 .*SIGKILL") as caught:
        asked(pair, "work", "work")
    assert caught.value.rank == 0
    assert_ended(pair)


def test_workers_that_stand_still_are_given_up_after_the_timeout_and_named(pair: WorkerGroup) -> None:
    began = time.monotonic()
    with pytest.raises(WorkerError, match=r"No answer for 1 seconds .*distributed_timeout_seconds") as caught:
        asked(pair, "work", "stop")
    assert 1 < time.monotonic() - began < 10
    assert "worker rank 1 of replica 0" in str(caught.value)
    assert "worker rank 0" not in str(caught.value)
    assert (caught.value.rank, caught.value.exit_code) == (1, None)
    assert_ended(pair)


def test_a_call_that_an_interrupt_cuts_short_is_forgotten(pair: WorkerGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(pair, "work", "work")
    with monkeypatch.context() as patch:
        patch.setattr(group_module, "heard_from", interrupted)
        with pytest.raises(KeyboardInterrupt):
            asked(pair, "dawdle", "old")
    assert asked(pair, "new", "new") == [(0, "new"), (1, "new")]


def test_workers_are_at_work_while_the_engine_does_something_else(pair: WorkerGroup) -> None:
    answered = list[bool]()

    def meanwhile() -> None:
        answered.extend(worker.connection.poll(10) for worker in pair._workers)

    assert pair.call("execute", "a", "b", meanwhile=meanwhile) == [(0, "a"), (1, "b")]
    assert answered == [True, True]


def test_what_the_engine_does_meanwhile_may_fail(pair: WorkerGroup) -> None:
    with pytest.raises(KeyboardInterrupt):
        pair.call("execute", "dawdle", "old", meanwhile=interrupted)
    assert asked(pair, "new", "new") == [(0, "new"), (1, "new")]


@pytest.mark.parametrize("half", ["recv", "send_bytes"])
def test_an_interrupt_in_the_middle_of_a_message_ends_the_workers(
    half: str, pair: WorkerGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(pair, "work", "work")
    with monkeypatch.context() as patch:
        patch.setattr(Connection, half, interrupted)
        with pytest.raises(KeyboardInterrupt):
            asked(pair, "work", "work")
    with pytest.raises(WorkerError, match="in the middle of a message"):
        asked(pair, "work", "work")
    assert_ended(pair)


def test_a_fork_can_neither_call_nor_end_the_workers(pair: WorkerGroup) -> None:
    asked(pair, "work", "work")
    fork = os.fork()
    if fork == 0:
        status = 1
        try:
            asked(pair, "work", "work")
        except WorkerError:
            pair.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
    assert asked(pair, "work", "work") == [(0, "work"), (1, "work")]


def interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt
