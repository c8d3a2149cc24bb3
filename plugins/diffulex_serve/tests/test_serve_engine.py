"""The seam between server and engine: clients, messages, and what becomes of requests when something breaks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import attrs
import pytest
from hypothesis import example, given, settings, strategies as st

from diffulex_core.config import ConfigFile
from diffulex_core.engine import Diffulex
from diffulex_core.errors import ConfigError, PluginError
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.tokenizer import decode
from diffulex_serve.engine import messages, wire
from diffulex_serve.engine.client import Client, EngineState
from diffulex_serve.engine.errors import CallRejected, EngineDied, EngineUnavailable, RequestRefused
from diffulex_serve.engine.inline import inline_client
from diffulex_serve.engine.mailbox import Mailbox
from diffulex_serve.engine.messages import Ended, Load, Logprob, Stepped, Submit
from diffulex_serve.engine.spec import EngineSpec
from diffulex_serve.stream.fold import Fold, Wishes

T = TypeVar("T")
PROMPT = (52, 30, 38)
LONG = {"temperature": 0.0, "max_tokens": 440, "ignore_eos": True}


@attrs.frozen
class Loop:
    """An event loop in which nothing may wait for ever."""

    runner: asyncio.Runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(asyncio.wait_for(work, 60))


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    with asyncio.Runner() as runner:
        yield Loop(runner)


@pytest.fixture(scope="module")
def client(loop: Loop) -> Iterator[Client]:
    made = inline_client(EngineSpec(model="tiny/llada").open)
    loop.run(made.start())
    yield made
    loop.run(made.close())


def submit(request_id: str, prompt: Sequence[int] = PROMPT, **params: Any) -> Submit:
    return Submit(request_id=request_id, prompt=tuple(prompt), params=params or LONG)


async def idle(client: Client) -> Load:
    async with asyncio.timeout(20):
        while client.load.live:
            await asyncio.sleep(0.01)
    return client.load


def test_an_abort_is_answered_when_the_pages_are_free_and_the_request_ends_with_what_is_final(
    loop: Loop, client: Client
) -> None:
    async def scene() -> None:
        async with await client.submit(submit("a")) as answer:
            events = aiter(answer)
            first = await anext(events)
            assert isinstance(first, Stepped)
            assert await client.abort("a") is True
            assert (client.load.live, client.load.free_pages) == (0, client.load.pages)
            *_, last = [event async for event in events]
            assert isinstance(last, Ended)
            assert last.reason == "aborted"
            assert last.token_ids
        assert await client.abort("a") is False

    loop.run(scene())


def test_leaving_an_answer_aborts_it(loop: Loop, client: Client) -> None:
    async def scene() -> None:
        began = client.load.step
        async with await client.submit(submit("b")):
            pass
        load = await idle(client)
        assert load.free_pages == load.pages
        assert load.step - began < 100

    loop.run(scene())


def test_cancelling_a_submission_aborts_it(loop: Loop, client: Client) -> None:
    async def scene() -> None:
        task = asyncio.create_task(client.submit(submit("c")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.requests == ()
        await asyncio.sleep(0.05)
        assert (await idle(client)).free_pages == client.load.pages

    loop.run(scene())


@pytest.mark.parametrize(
    ("prompt", "params", "kind"),
    [
        ((), LONG, "EmptyPrompt"),
        ((10**6,), LONG, "InvalidPrompt"),
        ((5,) * 600, LONG, "PromptTooLong"),
        (PROMPT, {"temperature": -1.0}, "InvalidSamplingParams"),
        (PROMPT, {"stop_token_ids": [10**6]}, "InvalidSamplingParams"),
    ],
)
def test_a_request_that_cannot_be_served_fails_alone(
    loop: Loop, client: Client, prompt: tuple[int, ...], params: dict[str, Any], kind: str
) -> None:
    async def scene() -> None:
        async with await client.submit(submit("good", max_tokens=8, temperature=0.0, ignore_eos=True)) as good:
            with pytest.raises(RequestRefused) as refused:
                await client.submit(Submit(request_id="bad", prompt=prompt, params=params))
            assert (refused.value.kind, refused.value.user_error) == (kind, True)
            *_, last = [event async for event in good]
        assert isinstance(last, Ended)
        assert last.reason == "length_tokens"

    loop.run(scene())


def test_what_the_engine_did_not_expect_of_a_request_fails_it_alone_and_tells_no_internals(
    loop: Loop, client: Client
) -> None:
    async def scene() -> None:
        with pytest.raises(RequestRefused, match="failed to take") as refused:
            await client.submit(submit("odd", no_such_field=1))
        assert not refused.value.user_error
        assert client.state is EngineState.READY

    loop.run(scene())


def test_two_live_requests_cannot_have_one_id(loop: Loop, client: Client) -> None:
    async def scene() -> None:
        async with await client.submit(submit("twin")):
            with pytest.raises(RequestRefused, match="twin"):
                await client.submit(submit("twin"))
        await idle(client)

    loop.run(scene())


def test_a_request_that_nobody_watches_tells_its_end_alone(loop: Loop, client: Client) -> None:
    async def scene() -> None:
        quiet = attrs.evolve(submit("quiet", max_tokens=12, temperature=0.0), watched=False)
        async with await client.submit(quiet) as answer:
            [end] = [event async for event in answer]
        assert isinstance(end, Ended)
        assert len(end.token_ids) <= 12

    loop.run(scene())


def test_a_profiler_that_is_not_there_is_said_and_the_engine_goes_on(loop: Loop, client: Client) -> None:
    async def scene() -> None:
        with pytest.raises(CallRejected, match="profiler"):
            await client.start_profile()
        assert await client.stop_profile() == []

    loop.run(scene())


def test_an_engine_that_cannot_load_says_why(loop: Loop) -> None:
    def broken() -> Diffulex:
        raise ConfigError(["there is no such model"])

    async def scene() -> None:
        made = inline_client(broken)
        with pytest.raises(EngineDied, match="no such model") as died:
            await made.start()
        assert died.value.kind == "ConfigError"
        with pytest.raises(EngineUnavailable):
            await made.submit(submit("x"))

    loop.run(scene())


def test_an_engine_that_breaks_in_a_step_fails_everybody_who_waits(loop: Loop) -> None:
    doomed = threading.Event()

    def fragile() -> Diffulex:
        engine = EngineSpec(model="tiny/llada").open()
        step = engine.step

        def breaks(*, collect: bool = True) -> Any:
            if doomed.wait(0.02):  # no answer comes to its end before all are asked for
                raise RuntimeError("the device fell off")
            return step(collect=collect)

        engine.step = breaks  # type: ignore[method-assign]
        return engine

    async def scene() -> None:
        made = inline_client(fragile)
        await made.start()
        answers = [await made.submit(submit(f"r{number}")) for number in range(3)]
        doomed.set()
        for answer in answers:
            with pytest.raises(EngineDied, match="fell off"):
                _ = [event async for event in answer]
        assert made.state is EngineState.FAILED
        with pytest.raises(EngineUnavailable):
            await made.submit(submit("late"))
        with pytest.raises(EngineUnavailable):
            await made.abort("r0")
        await made.close()

    loop.run(scene())


def test_closing_ends_all_requests_and_may_be_repeated(loop: Loop) -> None:
    async def scene() -> None:
        made = inline_client(EngineSpec(model="tiny/llada").open)
        await made.start()
        answer = await made.submit(submit("open"))
        await made.close()
        await made.close()
        assert made.state is EngineState.CLOSED
        ends = [event async for event in answer if isinstance(event, Ended)]
        assert [end.reason for end in ends] == ["aborted"]

    loop.run(scene())


def test_a_slow_reader_holds_one_step_and_the_end() -> None:
    async def scene() -> None:
        box = Mailbox()
        for at in range(1000):
            box.put(Stepped(request_id="r", step=at, nfe=at + 1, at=(at % 10,), tokens=(at,), confidence=(1.0,)))
        box.put(Ended(request_id="r", reason="stop_eos"))
        step, end = await box.get(), await box.get()
        assert isinstance(step, Stepped)
        assert (step.nfe, step.at, step.tokens) == (1000, tuple(range(10)), tuple(range(990, 1000)))
        assert isinstance(end, Ended)

    asyncio.run(scene())


MESSAGES = [
    Submit(request_id="r", prompt=(1, 2), params={"temperature": 0.5, "stop": ["a"], "logit_bias": {7: -1.5}}),
    messages.Abort(call=1, request_id="r"),
    messages.StartProfile(call=2, prefix="p"),
    messages.StopProfile(call=3),
    messages.Close(),
]
EVENTS = [
    messages.Accepted(request_id="r"),
    messages.Refused(request_id="r", kind="EmptyPrompt", message="m"),
    Stepped(
        request_id="r",
        step=3,
        nfe=2,
        opened=(4,),
        at=(0, 2),
        tokens=(9, 8),
        confidence=(0.5, 1.0),
        erased=(1,),
        final=1,
        committed=0,
        logprobs=(Logprob(logprob=-0.5, top=((9, -0.5),)), None),
    ),
    Ended(request_id="r", reason="stop_eos", token_ids=(1,), text="a", logprobs=(None,), ttft=0.1, steps_saved=0),
    Load(step=1, seconds=0.1, requests=1, rows=8, live=1, pages=10, free_pages=9),
    messages.Answered(call=1, value=True),
    messages.Answered(call=1, value=None),
    messages.Answered(call=1, value=["a", "b"]),
    messages.CallFailed(call=1, message="m"),
    messages.Died(kind="WorkerError", message="m"),
]


def test_messages_survive_their_journey() -> None:
    assert wire.decode_commands(wire.encode(MESSAGES)) == MESSAGES
    assert wire.decode_events(wire.encode(EVENTS)) == EVENTS


@given(st.binary(max_size=30))
@example(b"\x81\x90\xc0")
@settings(max_examples=50)
def test_bytes_that_are_no_messages_are_an_error_of_ours(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode_commands(data)


def test_messages_of_another_version_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "VERSION", 2)
    data = wire.encode(EVENTS)
    monkeypatch.undo()
    with pytest.raises(wire.WireError, match="version 2"):
        wire.decode_events(data)
    with pytest.raises(wire.WireError):
        wire.decode_events(wire.encode(MESSAGES))


def test_a_spec_survives_its_journey_and_refuses_other_plugins() -> None:
    spec = EngineSpec(
        model="tiny/llada",
        options={"num_pages": 64},
        texts={"max_num_reqs": "3"},
        config_file=ConfigFile(name="f.yaml", values={"schedule": {"max_model_len": 128}}),
        plugins=("core", "llada", "multibd", "tiny"),
    )
    assert EngineSpec.from_json(spec.to_json()) == spec
    with EngineSpec.from_json(spec.to_json()).open() as engine:
        schedule = engine.config.schedule
        assert (schedule.max_num_reqs, schedule.max_model_len, engine.cache_pages) == (3, 128, (64, 64))
    with pytest.raises(PluginError, match="nobody"):
        attrs.evolve(spec, manifest=(("nobody", "diffulex-nobody", "1"),)).open()


STORIES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("tiny/llada", {}, {}),
    ("tiny/llada", {"decoding_strategy": "multi_bd"}, {"stop": ["42 -"]}),
    ("tiny/llada", {"decoding_strategy": "llada_canvas"}, {"gen_length": 32, "steps": 16, "block_length": 16}),
    ("tiny/llada2", {"sampling_mode": "edit"}, {}),
    ("tiny/llada2", {"decoding_strategy": "dmax"}, {}),
    ("tiny/dream", {}, {"logprobs": 1}),
    ("tiny/dream", {"decoding_strategy": "dream_canvas"}, {"alg": "entropy", "gen_length": 32, "steps": 16}),
    ("tiny/gemma", {}, {"temperature": 0.7}),
]


@pytest.mark.parametrize(("model", "options", "extra"), STORIES)
def test_what_every_strategy_tells_step_by_step_is_its_answer(
    loop: Loop, model: str, options: dict[str, Any], extra: dict[str, Any]
) -> None:
    question = "Q: Ann has 12 apples, buys 30 more and gives away 7. How many are left?"
    given_params = {"temperature": 0.0, "max_tokens": 40, "seed": 1, **extra}
    engine = Diffulex(model, **options)
    [record] = engine.generate([question], SamplingParams(**given_params))
    tokenizer = engine.tokenizer
    assert record.error is None

    async def scene() -> tuple[list[Any], Fold]:
        made = inline_client(lambda: engine)
        info = await made.start()
        fold = Fold(
            request_id="r",
            info=info,
            prompt_tokens=1,
            spell=lambda tokens: decode(tokenizer, tokens),
            stop=extra.get("stop", ()),
            wishes=Wishes(),
            load=Load,
        )
        frames = fold.start()
        asked = Submit(request_id="r", prompt=tuple(tokenizer.encode(question)), params=given_params)
        async with await made.submit(asked) as answer:
            async for event in answer:
                frames += fold.step(event) if isinstance(event, Stepped) else fold.end(event)
        await made.close()
        return frames, fold

    frames, fold = loop.run(scene())
    commits = [frame.body for frame in frames if frame.body.event == "block_commit"]
    assert "".join(commit.text for commit in commits) == record.text == frames[-1].body.text
    assert tuple(token for commit in commits for token in commit.token_ids) == record.token_ids
    told = [frame.as_json() for frame in frames]
    assert all(0 <= each <= 1 for frame in told for each in frame.get("confidence", ()))
    assert any(each > 0.5 for frame in told for each in frame.get("confidence", ()))
    shown: dict[int, int] = {}
    for frame in frames:
        match frame.as_json():
            case {"event": "fill", "pos": pos, "token_ids": tokens}:
                assert not shown.keys() & set(pos)
                shown.update(zip(pos, tokens, strict=True))
            case {"event": "rewrite", "pos": pos, "old": old, "new": tokens}:
                assert [shown[at] for at in pos] == list(old)
                shown.update(zip(pos, tokens, strict=True))
            case {"event": "remask", "pos": pos}:
                for at in pos:
                    del shown[at]
    assert tuple(shown[at] for at in range(len(record.token_ids))) == record.token_ids
    if record.logprobs is not None:
        assert [each and each.logprob for each in fold.logprobs] == [each and each.logprob for each in record.logprobs]
