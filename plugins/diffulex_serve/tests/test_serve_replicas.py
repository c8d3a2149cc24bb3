"""Several engines behind one client: where requests go, what is told of all, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_serve.engine.errors import EngineDied, EngineUnavailable
from diffulex_serve.engine.messages import EngineInfo, Load, Submit
from diffulex_serve.engine.prefixes import MOST_BLOCKS, TOKENS_PER_BLOCK, SeenPrefixes, prefix_of
from diffulex_serve.engine.protocols import Answer
from diffulex_serve.engine.replicas import ReplicatedClient
from diffulex_serve.engine.restarting import RestartingClient
from diffulex_serve.engine.spec import EngineSpec
from diffulex_serve.engine.status import EngineState, ReplicaStatus
from diffulex_serve.http.metrics import Metrics
from diffulex_serve.launch import make_client
from diffulex_serve.options import ServeOptions, ServerSection
from tests.integration.engine_info import INFO

T = TypeVar("T")
SLACK = 2


class _Held(Answer):
    """An answer of which nothing is asked."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id

    @property
    def request_id(self) -> str:
        return self._request_id

    def __aiter__(self) -> Any:
        raise AssertionError

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


class Pretender:
    """A replica without an engine: a test says what it is."""

    def __init__(self, *, loads: bool = True) -> None:
        self.state = EngineState.NEW
        self.info = INFO
        self.load = Load()
        self.requests: list[str] = []
        self.restarts = 0
        self.loads = loads
        self.listener: Callable[[Load], None] = lambda _: None

    def on_load(self, listener: Callable[[Load], None]) -> None:
        self.listener = listener

    async def start(self) -> EngineInfo:
        await asyncio.sleep(0)
        if not self.loads:
            self.state = EngineState.CLOSED
            raise EngineDied("no weights")
        self.state = EngineState.READY
        return self.info

    async def submit(self, request: Submit) -> Answer:
        self.requests.append(request.request_id)
        return _Held(request.request_id)

    async def abort(self, request_id: str) -> bool:
        self.requests.remove(request_id)
        return True

    @property
    def replicas(self) -> Sequence[ReplicaStatus]:
        return [ReplicaStatus(state=self.state, load=self.load, restarts=self.restarts)]

    async def start_profile(self, prefix: str | None = None, config: Mapping[str, Any] | None = None) -> None:
        self.profiling = prefix, config

    async def stop_profile(self) -> list[str]:
        return [f"trace-{id(self)}"]

    async def close(self) -> None:
        self.state = EngineState.CLOSED

    def kill(self) -> None:
        self.state = EngineState.FAILED


def group(count: int = 3) -> tuple[list[Pretender], ReplicatedClient]:
    made = [Pretender() for _ in range(count)]
    client = ReplicatedClient(made, slack=SLACK)
    run(client.start())
    return made, client


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def submit(client: ReplicatedClient, request_id: str, prompt: tuple[int, ...] = ()) -> None:
    run(client.submit(Submit(request_id=request_id, prompt=prompt, params={})))


def prompt_of(kind: int, blocks: int = 3) -> tuple[int, ...]:
    return (kind, *range(TOKENS_PER_BLOCK * blocks))


def test_requests_without_a_common_beginning_go_where_there_is_least_to_do() -> None:
    replicas, client = group()
    for number in range(9):
        submit(client, f"r{number}", prompt_of(number))
    assert [len(each.requests) for each in replicas] == [3, 3, 3]
    replicas[1].requests.pop()
    submit(client, "next", prompt_of(100))
    assert replicas[1].requests[-1] == "next"


def test_idle_replicas_take_turns() -> None:
    replicas, client = group()
    took = []
    for number in range(6):
        submit(client, f"r{number}")
        took.append(next(at for at, each in enumerate(replicas) if each.requests))
        for each in replicas:
            each.requests.clear()
    assert took == [0, 1, 2, 0, 1, 2]


def test_a_prompt_goes_where_its_beginning_was_seen_until_that_replica_has_too_much_to_do() -> None:
    replicas, client = group()
    submit(client, "first", prompt_of(7))
    assert replicas[0].requests == ["first"]
    for number in range(SLACK):
        submit(client, f"same{number}", (*prompt_of(7), 1000 + number))
    assert len(replicas[0].requests) == 1 + SLACK
    submit(client, "over", prompt_of(7))
    assert [len(each.requests) for each in replicas] == [1 + SLACK, 1, 0]


def test_a_prompt_goes_where_most_of_it_was_seen() -> None:
    replicas, client = group()
    submit(client, "its beginning", prompt_of(7, 1))
    replicas[0].requests += ["other"] * 9
    submit(client, "all of it", prompt_of(7, 3))
    for each in replicas:
        each.requests.clear()
    submit(client, "next", prompt_of(7, 3))
    assert [each.requests for each in replicas] == [[], ["next"], []]


def test_a_replica_that_was_restarted_knows_no_prompt() -> None:
    replicas, client = group(2)
    submit(client, "a", prompt_of(7))
    replicas[0].restarts = 1
    submit(client, "b", prompt_of(7))
    assert [each.requests for each in replicas] == [["a"], ["b"]]


def test_requests_go_past_a_replica_that_is_not_ready_and_are_refused_when_none_is() -> None:
    replicas, client = group(2)
    replicas[0].state = EngineState.RESTARTING
    assert client.state is EngineState.READY
    assert (client.info.max_num_reqs, client.info.num_pages) == (4, 10)
    submit(client, "a")
    submit(client, "b")
    assert replicas[1].requests == ["a", "b"]
    replicas[1].state = EngineState.FAILED
    assert str(client.state) == "restarting"
    with pytest.raises(EngineUnavailable, match="restarting"):
        submit(client, "c")
    with pytest.raises(EngineUnavailable):
        run(client.abort("x"))
    assert client.info.max_num_reqs == 8


def test_what_is_told_of_all_replicas_is_their_sum_and_counts_every_step_once() -> None:
    replicas, client = group(2)
    told: list[Load] = []
    client.on_load(told.append)
    replicas[0].listener(Load(step=0, seconds=1.0, requests=2, rows=8, live=3, pages=10, free_pages=4))
    replicas[1].listener(Load(step=0, seconds=2.0, requests=1, rows=4, live=1, pages=10, free_pages=9))
    replicas[1].listener(Load(step=0, seconds=2.0, requests=1, rows=4, live=0, pages=10, free_pages=10))
    assert [load.step for load in told] == [0, 1, 1]
    assert client.load == Load(step=1, seconds=2.0, requests=3, rows=4, live=3, pages=20, free_pages=14)


def test_an_abort_finds_its_replica_and_a_profile_is_of_all() -> None:
    replicas, client = group(2)
    submit(client, "a")
    submit(client, "b")
    assert run(client.abort("b")) is True
    assert run(client.abort("b")) is False
    assert [each.requests for each in replicas] == [["a"], []]
    run(client.start_profile("p", {"formats": ["stages"]}))
    names = [name for name, config in (each.profiling for each in replicas) if config == {"formats": ["stages"]}]
    assert names == ["p.replica0", "p.replica1"]
    run(client.start_profile())
    first, second = (each.profiling[0] for each in replicas)
    assert first.removesuffix(".replica0") == second.removesuffix(".replica1") != first
    run(client.start_profile(None, {"run_id": "r"}))
    assert replicas[1].profiling[0] == "r.replica1"
    assert len(set(run(client.stop_profile()))) == 2


def test_two_requests_with_one_id_meet_in_one_replica_which_can_refuse_the_second() -> None:
    replicas, client = group(2)
    submit(client, "twin")
    submit(client, "twin")
    assert [each.requests for each in replicas] == [["twin", "twin"], []]


def test_when_one_replica_cannot_load_all_are_closed() -> None:
    replicas = [Pretender(), Pretender(loads=False), Pretender()]
    client = ReplicatedClient(replicas)
    with pytest.raises(EngineDied, match="no weights"):
        run(client.start())
    assert {each.state for each in replicas} == {EngineState.CLOSED}
    assert client.state is EngineState.CLOSED


def test_each_replica_is_one_copy_whatever_was_asked_for_all_of_them() -> None:
    spec = EngineSpec(model="tiny/llada", texts={"data_parallel_size": "2", "num_pages": "64"})
    assert spec.load().config.parallel.data_parallel_size == 2
    second = EngineSpec.from_json(attrs.evolve(spec, replica=1).to_json())
    with second.open() as engine:
        assert engine.config.parallel.data_parallel_size == 1
        assert engine.cache_pages == (64, 64)


def test_the_server_makes_as_many_clients_as_there_are_to_be() -> None:
    spec = EngineSpec(model="tiny/llada")
    assert isinstance(make_client(spec, ServeOptions(), 2), ReplicatedClient)
    assert isinstance(make_client(spec, ServeOptions()), RestartingClient)
    inline = ServeOptions(server=ServerSection(backend="inline"))
    assert isinstance(make_client(spec, inline, 2), RestartingClient)


PROMPTS = st.lists(st.integers(0, 2), max_size=TOKENS_PER_BLOCK * 4)


@given(PROMPTS, PROMPTS)
@settings(max_examples=60)
def test_as_many_tokens_match_as_whole_blocks_are_equal(first: list[int], second: list[int]) -> None:
    shared = TOKENS_PER_BLOCK * 2 * [1]
    for one, other in ((first, second), (shared + first, shared + second)):
        seen = SeenPrefixes()
        seen.note(prefix_of(one))
        equal = next(
            (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        assert seen.matched(prefix_of(other)) == equal // TOKENS_PER_BLOCK * TOKENS_PER_BLOCK


def test_the_memory_of_prompts_is_bounded_and_forgets_the_oldest_first() -> None:
    seen = SeenPrefixes(most=10)
    prompts = [prefix_of(prompt_of(kind, 4)) for kind in range(5)]
    for prefix in prompts:
        seen.note(prefix)
    assert len(seen) == 10
    assert [seen.matched(prefix) // TOKENS_PER_BLOCK for prefix in prompts] == [0, 0, 2, 4, 4]
    assert len(prefix_of(range(10**5))) == MOST_BLOCKS


def test_each_replica_is_told_of_in_its_place() -> None:
    replicas, client = group(2)
    replicas[1].state = EngineState.RESTARTING
    replicas[1].restarts = 3
    replicas[0].load = Load(requests=2, live=5, pages=10, free_pages=4)
    first, second = client.replicas
    assert (first.state, first.running, first.waiting, first.restarts) == (EngineState.READY, 2, 3, 0)
    assert (second.state, second.restarts) == (EngineState.RESTARTING, 3)
    lines = told_of(client)
    assert 'diffulex_replica_up{replica="0"} 1.0' in lines
    assert 'diffulex_replica_up{replica="1"} 0.0' in lines
    assert 'diffulex_replica_requests{replica="0",state="waiting"} 3.0' in lines
    assert 'diffulex_replica_kv_pages{replica="0",state="used"} 6.0' in lines
    assert 'diffulex_engine_restarts_total{replica="1"} 3.0' in lines


def told_of(client: ReplicatedClient) -> list[str]:
    metrics = Metrics()
    metrics.watch(client)
    return metrics.text().decode().splitlines()
