"""Where requests are taken in: who may enter, what is asked of the engine, and what comes back."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import attrs

from diffulex_core.plugin import PromptTooLong, SamplingParams
from diffulex_serve.engine.errors import EngineDied, EngineUnavailable, RequestRefused
from diffulex_serve.engine.messages import Ended, EngineInfo, Load, Submit
from diffulex_serve.engine.protocols import Answer, EngineClient
from diffulex_serve.engine.status import EngineState
from diffulex_serve.http.errors import ApiError
from diffulex_serve.http.metrics import Metrics
from diffulex_serve.journal import note
from diffulex_serve.options import ServeOptions
from diffulex_serve.stream.fold import Fold, Wishes
from diffulex_serve.stream.protocol import Frame
from diffulex_serve.texts import Texts

READERS_GRACE = 30.0
"""Seconds that a client has to read what is left of its answer once the time of its request is over."""


@attrs.frozen(kw_only=True)
class Ask:
    """One answer that is wanted.

    Attributes:
        prompt: token ids.
        params: how it is decoded.
        watched: whether its steps are wanted, and not only its end.
        name: under which a client knows it; None = by the request's id.
        wishes: what is told of the steps.
        min_interval: seconds between two looks at it; what happens meanwhile is told as one.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    watched: bool
    name: str | None = None
    wishes: Wishes = Wishes(detail="none")
    min_interval: float = 0.0


class Reply:
    """An answer on its way: iterate it for frames, until and with the last. Afterwards `ended` is set."""

    def __init__(self, answer: Answer, fold: Fold, *, ask: Ask, deadline: float | None, desk: Desk) -> None:
        self._answer = answer
        self._ask = ask
        self._deadline = deadline
        self._desk = desk
        self.fold = fold
        self.ended: Ended | None = None
        self.fate = "aborted"
        """What becomes of an answer that comes to no end."""

    @property
    def request_id(self) -> str:
        """The engine's name for it."""
        return self._answer.request_id

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """
        Raises:
            ApiError: it took too long, or the engine failed with it.
            EngineUnavailable: the engine died.
        """
        for frame in self.fold.start():
            yield frame
        events = aiter(self._answer)
        looked = -math.inf
        while self.ended is None:
            wait = looked + self._ask.min_interval - time.monotonic()
            try:
                async with asyncio.timeout_at(self._deadline):
                    if wait > 0:
                        await self._answer.rest(wait)
                    event = await anext(events)
            except EngineDied:
                self.fate = "engine_died"
                raise
            except TimeoutError:
                self._desk.metrics.refused.labels("timeout").inc()
                self.fate = "timeout"
                raise ApiError(
                    504, "The request took longer than request_timeout allows.", kind="timeout_error", code="timeout"
                ) from None
            looked = time.monotonic()
            if isinstance(event, Ended):
                self.ended = event
                self._desk.metrics.note_end(event)
                _note_end(event)
                frames = self.fold.end(event)
            else:
                frames = self.fold.step(event)
            for frame in frames:
                yield frame

    async def finish(self) -> Ended:
        """Wait for the end.

        Raises:
            ApiError, EngineUnavailable: as iterating does; also where the model itself failed.
        """
        async for _ in self:
            pass
        assert self.ended is not None
        if self.ended.reason == "error":
            raise ApiError(500, self.ended.error or "The engine failed.", kind="engine_error")
        return self.ended


class Desk:
    """What all routes share."""

    def __init__(self, client: EngineClient, texts: Texts, options: ServeOptions, *, model: str) -> None:
        """`model`: the name under which clients ask for it."""
        self.client = client
        self.texts = texts
        self.options = options
        self.model = model
        self.metrics = Metrics()
        self.draining = False
        self.created = int(time.time())
        self._inside = 0
        self._last_step = client.load.step
        self._named: dict[str, set[str]] = {}
        """Ids of the requests that a client knows by one name."""
        self.stepped_at: float | None = None
        """When the engine finished its latest step, by the monotonic clock."""
        self._usual = 1.0
        """Seconds that requests took lately."""
        client.on_load(self._note)
        self.metrics.watch(client)

    @property
    def info(self) -> EngineInfo:
        """What answers. Raises EngineUnavailable while nothing does."""
        return self.client.info

    @property
    def inside(self) -> int:
        """Answers that are being made or wait."""
        return self._inside

    @property
    def stream_seconds(self) -> float | None:
        """How long a stream may take in all, slow readers included; None = without end."""
        timeout = self.options.limits.request_timeout
        return None if timeout is None else timeout + READERS_GRACE

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Room for so many answers.

        Raises:
            ApiError: there is none (429), or the server stops (503).
            EngineUnavailable: there is no engine.
        """
        if self.draining:
            self._refuse("draining")
            headers = {"Retry-After": "5"}
            raise ApiError(503, "The server is stopping.", kind="service_unavailable", code="draining", headers=headers)
        if self.client.state is not EngineState.READY:
            self._refuse("engine")
            if self.client.state is EngineState.FAILED:
                raise EngineUnavailable("The engine failed, and is not started again.")
            raise EngineUnavailable(f"The engine is {self.client.state.value}. Try again later.")
        slots = self.info.max_num_reqs
        if self._inside + count > slots + self.options.limits.max_queue:
            self._refuse("busy")
            rounds = max(1, math.ceil((self._inside + count - slots) / slots))
            seconds = str(min(60, max(1, math.ceil(rounds * self._usual))))
            raise ApiError(
                429,
                f"{self._inside} requests wait or run, and no more may wait. Try again in {seconds} s.",
                kind="rate_limit_error",
                code="queue_full",
                headers={"Retry-After": seconds},
            )
        self._inside += count
        try:
            yield
        finally:
            self._inside -= count

    async def abort(self, name: str) -> bool:
        """End a request by its id, or all that have a name; False when none is here (any more).

        Raises:
            EngineUnavailable: there is no engine.
        """
        aborted = [await self.client.abort(each) for each in sorted(self._named.get(name, {name}))]
        return any(aborted)

    @asynccontextmanager
    async def open(self, asks: Sequence[Ask]) -> AsyncIterator[list[Reply]]:
        """Hand in answers that belong together; leaving ends those that are not done.

        Room for them is asked for before, with `admit`, so that a full server does not even encode prompts.

        Raises:
            ApiError, RequestRefused, EngineUnavailable: one cannot be served; none is.
        """
        limits, began = self.options.limits, time.monotonic()
        for ask in asks:
            if limits.max_prompt_tokens is not None and len(ask.prompt) > limits.max_prompt_tokens:
                raise PromptTooLong(
                    f"The prompt has {len(ask.prompt)} tokens, but this server takes {limits.max_prompt_tokens}."
                )
        timeout = limits.request_timeout
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        async with AsyncExitStack() as stack:
            replies = [await self._submit(ask, deadline, stack) for ask in asks]
            # Nobody is told a name before all of its requests are here.
            for ask, reply in zip(asks, replies, strict=True):
                if ask.name is not None:
                    self._named.setdefault(ask.name, set()).add(reply.request_id)
                    stack.callback(self._forget_name, ask.name)
            yield replies
        took = time.monotonic() - began
        self._usual += 0.2 * (took - self._usual)

    async def _submit(self, ask: Ask, deadline: float | None, stack: AsyncExitStack) -> Reply:
        request_id = uuid.uuid4().hex
        params = attrs.asdict(ask.params, recurse=False)
        given = Submit(request_id=request_id, prompt=ask.prompt, params=_plain(params), watched=ask.watched)
        try:
            answer = await stack.enter_async_context(await self.client.submit(given))
        except RequestRefused as error:
            self._refuse("invalid" if error.user_error else "failed")
            raise
        except asyncio.CancelledError:  # the client left before the engine took it
            self._end("aborted")
            raise
        except OverflowError as error:
            raise ApiError(400, "A number of the request is too large for any model.") from error
        except UnicodeEncodeError as error:
            raise ApiError(400, "A text of the request holds half of a surrogate pair.") from error
        fold = Fold(
            request_id=request_id,
            info=self.info,
            prompt_tokens=len(ask.prompt),
            spell=self.texts.spell(skip_special_tokens=ask.params.skip_special_tokens),
            stop=ask.params.stop,
            wishes=ask.wishes,
            load=lambda: self.client.load,
            alone=self.texts.bare if ask.params.skip_special_tokens else self.texts.alone,
        )
        reply = Reply(answer, fold, ask=ask, deadline=deadline, desk=self)
        stack.callback(self._note_abort, reply)
        return reply

    def _forget_name(self, name: str) -> None:
        self._named.pop(name, None)

    def _note_abort(self, reply: Reply) -> None:
        """Count an answer for which nobody waited, or that came to no end."""
        if reply.ended is None:
            self._end(reply.fate)

    def _end(self, fate: str) -> None:
        """Note what became of an answer that came to no end."""
        self.metrics.ended.labels(fate).inc()
        note(outcome=fate)

    def _refuse(self, why: str) -> None:
        """Note that a request is not served."""
        self.metrics.refused.labels(why).inc()
        note(outcome=f"refused:{why}")

    def _note(self, load: Load) -> None:
        self.metrics.note_load(load)
        if load.step != self._last_step:
            self._last_step, self.stepped_at = load.step, time.monotonic()
            self.metrics.note_step(load)


def _note_end(ended: Ended) -> None:
    """What an answer cost, for the line of its request in the log."""
    note(
        outcome=ended.reason,
        prompt_tokens=ended.prompt_tokens,
        tokens=len(ended.token_ids),
        forwards=ended.nfe,
        preemptions=ended.preemptions,
    )


def _plain(params: dict[str, object]) -> dict[str, object]:
    """Sampling parameters as messages carry them."""
    return {
        name: attrs.asdict(value) if attrs.has(type(value)) else value  # type: ignore[arg-type]
        for name, value in params.items()
    }
