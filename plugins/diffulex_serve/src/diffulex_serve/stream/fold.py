"""From what an engine says of a request to the events of the stream protocol. Pure but for the clock it is given."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from diffulex_core.plugin import CompletionReason
from diffulex_serve.engine.messages import Ended, EngineInfo, Load, Logprob, Stepped
from diffulex_serve.stream.committing import Commit, Committer, StreamBroken
from diffulex_serve.stream.protocol import (
    BlockCommit,
    BlockOpen,
    Body,
    Detail,
    End,
    Error,
    Fill,
    Frame,
    Metrics,
    Remask,
    Rewrite,
    Snapshot,
    Start,
)
from diffulex_serve.stream.spelling import Spell

METRICS_EVERY = 0.5
"""Seconds."""

_FINISH = {
    CompletionReason.STOP_EOS: "stop",
    CompletionReason.STOP_TOKEN: "stop",
    CompletionReason.STOP_STRING: "stop",
    CompletionReason.LENGTH_TOKENS: "length",
    CompletionReason.LENGTH_CONTEXT: "length",
    CompletionReason.NFE_LIMIT: "length",
    CompletionReason.REPETITION: "stop",
    CompletionReason.ABORTED: "abort",
    CompletionReason.ERROR: "error",
}


@attrs.frozen(kw_only=True)
class Wishes:
    """What a client wants to be told.

    Attributes:
        detail: how much.
        snapshot_every: a snapshot after so many steps; 0 = none.
        mask_symbol: what to show for a position without a token.
    """

    detail: Detail = "tokens+confidence"
    snapshot_every: int = 0
    mask_symbol: str = "▨"


class Fold:
    """One request's events, in order. `alone` tells a token's own text, where nothing is known of its neighbours.

    Attributes:
        prompt_tokens: as it was told.
        steps: forwards, or joined ones, that were taken in.
        decode_time: seconds of the forwards in which it decoded.
        logprobs: what is known of the tokens that were committed so far.
    """

    def __init__(
        self,
        *,
        request_id: str,
        info: EngineInfo,
        prompt_tokens: int,
        spell: Spell,
        stop: Sequence[str],
        wishes: Wishes,
        load: Callable[[], Load],
        alone: Callable[[int], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._id = request_id
        self._info = info
        self.prompt_tokens = prompt_tokens
        self._alone = alone or (lambda token: spell([token]))
        self._wishes = wishes
        self._load = load
        self._clock = clock
        self._committer = Committer(spell, stop)
        self._shown: dict[int, int] = {}
        """Token at each position that shows one."""
        self._starts: list[int] = []
        """First position of each block, ascending."""
        self._length = 0
        self._final = 0
        self._seq = 0
        self.steps = 0
        self.decode_time = 0.0
        self._step, self._nfe = -1, 0
        self._first_step: float | None = None
        self._told = clock()
        self._of_position: dict[int, Logprob | None] = {}
        self.logprobs: list[Logprob | None] = []

    @property
    def text(self) -> str:
        """The text that was committed so far."""
        return self._committer.text

    @property
    def length(self) -> int:
        """Positions of the blocks that are open or committed."""
        return self._length

    @property
    def committed(self) -> int:
        """Tokens that were committed."""
        return self._committer.sent

    def shown(self, start: int) -> list[int | None]:
        """Tokens at all positions from `start` on, None where none is shown."""
        return [self._shown.get(at) for at in range(start, self._length)]

    def start(self) -> list[Frame]:
        """The first event."""
        return self._frames(
            [
                Start(
                    prompt_tokens=self.prompt_tokens,
                    model=self._info.model,
                    strategy=self._info.strategy,
                    block_size=self._info.block_size,
                    mask_symbol=self._wishes.mask_symbol,
                )
            ]
        )

    def step(self, stepped: Stepped) -> list[Frame]:
        """What a forward, or several that were joined, changed.

        Raises:
            StreamBroken: the engine took back what was final.
        """
        self._step, self._nfe, self.steps = stepped.step, stepped.nfe, self.steps + 1
        self.decode_time = stepped.decode_time
        self._first_step = self._clock() if self._first_step is None else self._first_step
        bodies: list[Body] = []
        blocks = list(self._open(stepped.opened))
        changes = list(self._change(stepped))
        if self._wishes.detail != "none":
            bodies += blocks
        if self._wishes.detail.startswith("tokens"):
            bodies += changes
        bodies += self._commit(stepped.final)
        if self._wishes.snapshot_every and self.steps % self._wishes.snapshot_every == 0:
            tokens = tuple(self._shown.get(at) for at in range(self._length))
            bodies.append(Snapshot(start=0, len=self._length, token_ids=tokens))
        now = self._clock()
        if now - self._told >= METRICS_EVERY and self._wishes.detail != "none":
            self._told = now
            bodies.append(self._metrics(now))
        return self._frames(bodies)

    def end(self, ended: Ended) -> list[Frame]:
        """The rest, and the last event.

        Raises:
            StreamBroken: the answer does not begin as was told.
        """
        self._nfe = ended.nfe
        bodies: list[Body] = []
        last = self._committer.finish(ended.token_ids, ended.text)
        if last is not None:
            if ended.logprobs is not None:
                self.logprobs[last.start :] = ended.logprobs[last.start :]
            bodies += self._pieces(last)
        reason = CompletionReason(ended.reason)
        if reason is CompletionReason.ERROR:
            bodies.append(Error(message=ended.error or "The engine failed.", type="engine_error"))
        else:
            bodies.append(
                End(
                    finish_reason=_FINISH[reason],
                    stop_detail=reason.value,
                    usage=usage(ended),
                    text=self._committer.text,
                    token_ids=ended.token_ids,
                )
            )
        return self._frames(bodies)

    def fail(self, message: str, kind: str) -> list[Frame]:
        """The last event of an answer that will not be finished."""
        return self._frames([Error(message=message, type=kind)])

    def _frames(self, bodies: Iterable[Body]) -> list[Frame]:
        frames = []
        for body in bodies:
            frames.append(Frame(id=self._id, seq=self._seq, step=self._step, nfe=self._nfe, body=body))
            self._seq += 1
        return frames

    def _open(self, lengths: Iterable[int]) -> Iterator[BlockOpen]:
        for length in lengths:
            yield BlockOpen(block=len(self._starts), start=self._length, len=length)
            self._starts.append(self._length)
            self._length += length

    def _change(self, stepped: Stepped) -> Iterator[Fill | Rewrite | Remask]:
        """Changes, those of a block and a kind together."""
        fills: dict[int, list[tuple[int, int, float]]] = {}
        rewrites: dict[int, list[tuple[int, int, float]]] = {}
        remasks: dict[int, list[int]] = {}
        for at, token, confidence in zip(stepped.at, stepped.tokens, stepped.confidence, strict=True):
            kind = rewrites if at in self._shown else fills
            if self._shown.get(at) != token:
                kind.setdefault(self._block(at), []).append((at, token, confidence))
        for at in stepped.erased:
            if at in self._shown:
                remasks.setdefault(self._block(at), []).append(at)
        if stepped.logprobs:
            self._of_position.update(zip(stepped.at, stepped.logprobs, strict=True))
        for block, positions in remasks.items():
            yield Remask(block=block, pos=tuple(positions))
        for block, written in fills.items():
            yield Fill(block=block, pos=_column(written, 0), token_ids=_column(written, 1), **self._described(written))
        for block, written in rewrites.items():
            pos = _column(written, 0)
            old = tuple(self._shown[at] for at in pos)
            yield Rewrite(block=block, pos=pos, old=old, new=_column(written, 1), **self._described(written))
        for at in stepped.erased:
            self._shown.pop(at, None)
        self._shown.update(zip(stepped.at, stepped.tokens, strict=True))

    def _described(self, written: Sequence[tuple[int, int, float]]) -> dict[str, Any]:
        if not self._wishes.detail.startswith("tokens"):
            return {"text": ()}
        confident = self._wishes.detail == "tokens+confidence"
        return {
            "text": tuple(self._alone(token) for _, token, _ in written),
            "confidence": _column(written, 2) if confident else None,
        }

    def _commit(self, final: int) -> Iterator[BlockCommit]:
        if final <= self._final:
            return
        missing = [at for at in range(self._final, final) if at not in self._shown]
        if missing:
            raise StreamBroken(f"Position {missing[0]} of the answer is final and shows no token.")
        commit = self._committer.add([self._shown[at] for at in range(self._final, final)])
        self._final = final
        if commit is not None:
            self.logprobs += [self._of_position.pop(commit.start + at, None) for at in range(len(commit.token_ids))]
            yield from self._pieces(commit)

    def _pieces(self, commit: Commit) -> Iterator[BlockCommit]:
        """A commit cut where blocks end. The text goes with the last piece, as a character may span two blocks."""
        start, end = commit.start, commit.start + len(commit.token_ids)
        while True:
            block = self._block(start)
            border = self._starts[block + 1] if block + 1 < len(self._starts) else max(end, self._length)
            stop = min(end, border)
            yield BlockCommit(
                block=block,
                start=start,
                token_ids=commit.token_ids[start - commit.start : stop - commit.start],
                text=commit.text if stop == end else "",
                complete=stop == border,
            )
            if stop == end:
                return
            start = stop

    def _block(self, position: int) -> int:
        """The block that holds a position; the first where none is open yet."""
        return max(0, bisect.bisect_right(self._starts, position) - 1)

    def _metrics(self, now: float) -> Metrics:
        load = self._load()
        used = 1 - load.free_pages / load.pages if load.pages else 0.0
        spent = now - (self._first_step or now)
        return Metrics(
            tpf=round(self._final / self._nfe, 3) if self._nfe else 0.0,
            decode_tps=round(self._final / spent, 1) if spent > 0 else 0.0,
            kv_usage=round(used, 4),
        )


def usage(ended: Ended) -> Mapping[str, Any]:
    """What an answer cost: OpenAI's counts, and those of diffusion."""
    visible, decode = len(ended.token_ids), ended.nfe - ended.nfe_prefill
    return {
        "prompt_tokens": ended.prompt_tokens,
        "completion_tokens": visible,
        "total_tokens": ended.prompt_tokens + visible,
        "prompt_tokens_details": {"cached_tokens": ended.cached_tokens},
        "nfe": ended.nfe,
        "nfe_prefill": ended.nfe_prefill,
        "nfe_decode": decode,
        "tokens_written": ended.tokens_written,
        "tokens_edited": ended.tokens_edited,
        "tpf": round(visible / decode, 4) if decode else 0.0,
        "queue_time": ended.queue_time,
        "ttft": ended.ttft,
        "tpot": ended.tpot,
        "e2e_time": ended.e2e_time,
        "decode_time": ended.decode_time,
    }


def finish_reason(reason: str) -> str:
    """A `CompletionReason` in OpenAI's terms: `stop`, `length`, `abort` or `error`."""
    return _FINISH[CompletionReason(reason)]


def _column(rows: Sequence[tuple[int, int, float]], index: int) -> tuple[Any, ...]:
    return tuple(row[index] for row in rows)
