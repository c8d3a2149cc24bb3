"""Whatever happens to a worker, the engine says it once, ends the others and can be closed."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import attrs
import psutil
import pytest

from diffulex_core.engine import Diffulex
from diffulex_core.errors import CheckpointError, ConfigError, PeerLost, PluginError, WorkerError
from diffulex_core.host import Host
from diffulex_core.sampling_params import SamplingParams
from tests.core.checkpoints import write_llada_checkpoint, write_weights
from tests.core.throwaway import Site
from tests.integration.engines import CHECKPOINT, SETTINGS, engine, host as installed, prompt

PLUGIN = """
@hookimpl
def diffulex_register_components(register):
    register(Component(kind="runner", name="faulty", factory="faulty_runner:make"))

@hookimpl
def diffulex_register_strategies(register):
    pattern = "diffulex_multibd.patterns:block_causal"
    register(DecodingStrategy(name="faulty", pattern=pattern, runner="faulty"))
"""

RUNNER = """
import os, signal, sys, time, warnings
print("printed by a plugin")
os.write(1, b"written by a plugin\\n")
import attrs
from diffulex_core.errors import CheckpointError
from diffulex_core.runner import EagerRunner

RAISE, TYPED, ODD, EXIT, KILLED, STOPPED, SLOW, GREEDY, MUTE = range(200, 209)

class Odd(Exception):
    def __init__(self, first, second):
        super().__init__(first)

class Faulty:
    def __init__(self, model, inner):
        self.group, self.inner = model.embed.tp, inner

    def execute(self, plan):
        if self.group.rank == self.group.size - 1:
            self.misbehave(int(plan.windows[0].span.tokens[0]))
        output = self.inner.execute(plan)
        mute = plan.windows[0].span.tokens[0] == MUTE
        return attrs.evolve(output, decisions=(lambda: None,)) if mute else output

    def misbehave(self, token):
        if token == RAISE:
            raise ValueError("the last rank broke")
        if token == TYPED:
            raise CheckpointError("here", ["first", "second"], owner="nobody")
        if token == ODD:
            raise Odd("strange", "error")
        if token == EXIT:
            sys.exit(3)
        if token == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        if token == STOPPED:
            os.kill(os.getpid(), signal.SIGSTOP)
        if token == SLOW:
            time.sleep(0.5)
        if token == GREEDY:
            raise MemoryError("no room")

    def close(self):
        self.inner.close()

def make(*, model, **parts):
    warnings.warn("a plugin's warning")
    return Faulty(model, EagerRunner(model=model, **parts))
"""

RAISE, TYPED, ODD, EXIT, KILLED, STOPPED, SLOW, GREEDY, MUTE = range(200, 209)
GOOD = SamplingParams(temperature=0.0, max_tokens=16)


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The installed plugins and one whose runner misbehaves on the last rank when the first token says so."""
    installed()  # found, and remembered for other tests, before the site is there
    site = Site(tmp_path / "site")
    site.install("faulty", PLUGIN)
    (site.path / "faulty_runner.py").write_text(RUNNER)
    monkeypatch.syspath_prepend(site.path)
    return Host.discover()


def faulty_engine(host: Host, **settings: Any) -> Diffulex:
    options = {**SETTINGS, "decoding_strategy": "faulty", "device": "cpu", "skip_warmup": True, **settings}
    return Diffulex(CHECKPOINT, host=host, strict=True, **options)


def workers() -> list[psutil.Process]:
    """The processes below this one. Python's tracker of resources, which another file's tests may need, is none."""
    return [process for process in psutil.Process().children(recursive=True) if not is_tracker(process)]


def is_tracker(process: psutil.Process) -> bool:
    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return False


def no_process(*arguments: object, **options: object) -> None:
    raise AssertionError("a process was started")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = {process.pid for process in workers()}
    yield
    assert {process.pid for process in workers()} <= before


def seconds_until(gone: list[psutil.Process]) -> float:
    began = time.monotonic()
    _, alive = psutil.wait_procs(gone, timeout=20)
    assert not alive
    return time.monotonic() - began


def test_an_error_of_a_lone_worker_arrives_as_it_is_and_the_engine_goes_on(
    faulty: Host,
) -> None:
    with (
        engine(device="cpu") as plain,
        faulty_engine(faulty, executor="spawned") as ready,
    ):
        [wanted] = plain.generate([prompt(9)], GOOD)
        [answer] = ready.generate([prompt(9)], GOOD)
        assert answer.token_ids == wanted.token_ids

        with pytest.raises(ValueError, match="the last rank broke") as broken:
            ready.generate([RAISE, 5], GOOD)
        [note] = broken.value.__notes__
        assert "worker rank 0 of replica 0" in note
        assert "in misbehave" in note

        with pytest.raises(CheckpointError) as typed:
            ready.generate([TYPED, 5], GOOD)
        assert (typed.value.where, typed.value.problems, typed.value.owner) == ("here", ("first", "second"), "nobody")

        with pytest.raises(WorkerError, match="Odd: strange") as odd:
            ready.generate([ODD, 5], GOOD)
        assert odd.value.exit_code is None

        with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
            ready.generate([MUTE, 5], GOOD)

        def interrupt(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        previous = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(KeyboardInterrupt):
                ready.generate([SLOW, 5], GOOD)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        for process in workers():
            assert os.getsid(process.pid) != os.getsid(0), "a terminal would interrupt it, too"
            process.send_signal(signal.SIGINT)
        [answer] = ready.generate([prompt(9)], GOOD)
        assert answer.token_ids == wanted.token_ids

        with pytest.raises(WorkerError, match="ended with exit status 3 while executing a step") as dead:
            ready.generate([EXIT, 5], GOOD)
        assert (dead.value.rank, dead.value.exit_code) == (0, 3)
        with pytest.raises(WorkerError, match=r"no workers any more.*exit status 3"):
            ready.generate([prompt(9)], GOOD)


def test_an_error_of_one_rank_ends_the_group_and_is_raised_once(
    faulty: Host, capfd: pytest.CaptureFixture[str]
) -> None:
    descriptors = psutil.Process().num_fds()
    ready = faulty_engine(faulty, tensor_parallel_size=2)
    group = workers()
    with pytest.raises(MemoryError, match="no room") as caught:
        ready.generate([GREEDY, 5], GOOD)
    [note] = caught.value.__notes__
    assert "worker rank 1 of replica 0" in note
    assert "worker rank 0" not in note
    assert seconds_until(group) < 1
    with pytest.raises(WorkerError, match="ended after MemoryError: no room"):
        ready.generate([prompt(9)], GOOD)
    ready.close()
    assert psutil.Process().num_fds() == descriptors
    out, err = capfd.readouterr()
    assert out == ""
    assert (err.count("printed by"), err.count("written by"), err.count("UserWarning")) == (2, 2, 1)


def test_a_rank_that_is_killed_in_a_step_is_noticed_and_named(faulty: Host) -> None:
    with faulty_engine(faulty, tensor_parallel_size=2) as ready:
        group = workers()
        began = time.monotonic()
        with pytest.raises(WorkerError, match=r"rank 1 .*SIGKILL while executing a step.*memory") as caught:
            ready.generate([KILLED, 5], GOOD)
        assert (caught.value.rank, caught.value.exit_code) == (1, -signal.SIGKILL)
        assert time.monotonic() - began < 10, "the communication library's timeout is what was noticed"
        assert seconds_until(group) < 1


@pytest.mark.slow
def test_a_rank_that_stands_still_is_given_up_by_the_others_after_the_timeout(faulty: Host) -> None:
    with faulty_engine(faulty, tensor_parallel_size=2, distributed_timeout_seconds=1) as ready:
        group = workers()
        with pytest.raises(PeerLost, match=r"lost the other ranks.*1000ms") as caught:
            ready.generate([STOPPED, 5], GOOD)
        assert caught.value.rank == 0
        assert seconds_until(group) < 1


@pytest.mark.slow
def test_a_replica_that_is_killed_at_rest_or_stands_still_is_found_in_the_next_step() -> None:
    with engine(device="cpu", data_parallel_size=2, distributed_timeout_seconds=1) as ready:
        first, second = sorted(workers(), key=lambda process: process.pid)
        second.kill()
        with pytest.raises(WorkerError, match="replica 1 ") as caught:
            ready.generate([prompt(9), prompt(9, 1)], GOOD)
        assert (caught.value.replica, caught.value.exit_code) == (1, -signal.SIGKILL)

        assert len(ready.generate(prompt(9), GOOD)) == 1
        first.suspend()
        began = time.monotonic()
        with pytest.raises(WorkerError, match=r"No answer for 1 seconds .*while executing a step.*replica 0") as caught:
            ready.generate(prompt(9), GOOD)
        assert (caught.value.replica, caught.value.exit_code) == (0, None)
        assert time.monotonic() - began < 10
        assert seconds_until([first]) < 1


def test_workers_end_with_their_engine_whatever_surrounds_it(tmp_path: Path) -> None:
    """A script without a main guard, in a directory with modules of well-known names, without a standard error."""
    script, elsewhere, temporary = tmp_path / "plain_script.py", tmp_path / "elsewhere", tmp_path / "temporary"
    elsewhere.mkdir()
    temporary.mkdir()
    for name in ("json", "signal", "torch"):
        (elsewhere / f"{name}.py").write_text("raise SystemExit('found in the current directory')")
    options = {**SETTINGS, "executor": "spawned", "device": "cpu"}
    script.write_text(
        "import pathlib, sys, psutil\n"
        "from diffulex_core.engine import Diffulex\n"
        "sys.path.append(pathlib.Path('ignored'))\n"
        f"made = Diffulex({str(CHECKPOINT)!r}, **{options!r})\n"
        f"print(len(made.generate({prompt(9)!r})), *[child.pid for child in psutil.Process().children()], flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        ["sh", "-c", 'exec "$0" "$1" 2>&-', sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=elsewhere,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as program:
        assert program.stdout is not None
        answers, *numbers = map(int, program.stdout.readline().split())
        assert answers == 1
        group = [psutil.Process(number) for number in numbers]
        assert len(group) == 1
        program.kill()
        _, alive = psutil.wait_procs(group, timeout=20)
    assert not alive
    assert list(temporary.iterdir()) == []


def test_workers_with_other_plugins_refuse_to_start_and_name_both(faulty: Host) -> None:
    records = tuple(
        attrs.evolve(record, provenance=attrs.evolve(record.provenance, version="0.0.9"))
        if record.provenance.plugin == "faulty"
        else record
        for record in faulty.records
    )
    with pytest.raises(PluginError) as caught:
        faulty_engine(attrs.evolve(faulty, records=records), executor="spawned")
    assert "Only in the engine: faulty (diffulex-faulty 0.0.9)" in str(caught.value)
    assert "Only in the worker: faulty (diffulex-faulty 1.0)" in str(caught.value)


def test_a_plugin_given_as_a_module_is_refused_before_any_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", no_process)
    given = Host.discover(extra=[ModuleType("handed_over")])
    with pytest.raises(PluginError, match="cannot find 'handed_over', which came as a module"):
        faulty_engine(given, decoding_strategy="multi_bd", executor="spawned")


def test_a_damaged_checkpoint_is_one_error_of_one_worker(tmp_path: Path) -> None:
    written = write_llada_checkpoint(tmp_path / "ckpt", n_layers=1)
    lost = "model.transformer.blocks.0.attn_out.weight"
    write_weights(written.folder, {name: tensor for name, tensor in written.tensors.items() if name != lost})
    with pytest.raises(CheckpointError) as caught:
        Diffulex(written.folder, executor="spawned", device="cpu", max_model_len=64)
    [problem] = caught.value.problems
    assert lost in problem
    assert caught.value.where == str(written.folder)
    [note] = caught.value.__notes__
    assert note.count("Traceback") == 1


def test_an_engine_that_nobody_closes_takes_its_worker_with_it_and_a_fork_leaves_it_alone() -> None:
    before = {process.pid for process in workers()}
    made = engine(device="cpu", executor="spawned")
    [worker] = [process for process in workers() if process.pid not in before]
    wanted = made.generate(prompt(9), GOOD)[0].token_ids
    fork = os.fork()
    if fork == 0:
        status = 1
        try:
            made.generate(prompt(9), GOOD)
        except WorkerError:
            made.close()
            del made
            gc.collect()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
    assert made.generate(prompt(9), GOOD)[0].token_ids == wanted
    del made
    gc.collect()
    assert not worker.is_running()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tensor_parallel_size": 3}, "tensor_parallel_size 3 does not divide the number of query heads, which is 4"),
        ({"tensor_parallel_size": 2, "executor": "in_process"}, "executor='in_process' is one process"),
        ({"tensor_parallel_size": 2, "distributed_backend": "nccl"}, "Use distributed_backend='auto' or 'gloo'"),
        ({"tensor_parallel_size": 2, "master_addr": "192.0.2.1"}, "master_addr='192.0.2.1' with master_port=0"),
        ({"data_parallel_size": 2, "device": "cuda"}, "2 CUDA devices are wanted"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_cannot_be_divided_is_refused_before_any_process_is_started(
    settings: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", no_process)
    with pytest.raises(ConfigError) as caught:
        engine(**{"device": "cpu", **settings})
    assert len(caught.value.problems) == 1
    assert words in str(caught.value)


def test_a_process_that_the_system_refuses_is_a_problem_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(ConfigError, match=r"cannot be started: .*temporarily unavailable"):
        engine(device="cpu", data_parallel_size=2)


def test_a_port_that_is_taken_is_refused_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"master_port={port} .*master_port=0 for a free port"):
            engine(device="cpu", tensor_parallel_size=2, master_port=port)
