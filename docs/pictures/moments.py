"""How an answer stands after each of its forwards: from an engine's run, or from a scripted one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs

from diffulex import Diffulex, SamplingParams
from diffulex_core.host import Host
from diffulex_core.types import Canvas
from docs.pictures.scripted import Example, forwards


@attrs.frozen(kw_only=True)
class Moment:
    """The answer after one forward.

    Attributes:
        start: position of its first token.
        words: the tokens through the last running block; empty where undecided.
        states: of each: "fresh" (decided in this forward), "edited", "answer" (decided before), "stored" or "mask".
        rows: rows that the forward fed.
    """

    start: int
    words: tuple[str, ...]
    states: tuple[str, ...]
    rows: int


def of_engine(
    prompt: str,
    params: SamplingParams,
    *,
    host: Host,
    margin: float,
    model: str = "tiny/llada",
    part: slice | None = None,
    **options: Any,
) -> Iterator[Moment]:
    """Moments of one answer.

    Args:
        margin: no confidence may come so close to a threshold, so that every machine decides alike.
        model: whose answer.
        part: show these tokens of the answer only, from the forward in which they are first there until they are
            stored; None = the whole answer.
        options: configuration keys.
    """
    with Diffulex(model, host=host, strict=True, **options) as engine:
        request, canvases = engine.add_request(prompt, params), list[tuple[Canvas, int]]()
        limits = engine.config.decoding.decoding_thresholds
        thresholds = [limits.accept_threshold]
        if engine.config.decoding.sampling_mode == "edit":
            thresholds.append(limits.edit_threshold)
        while not engine.is_finished():
            done = engine.step()
            assert done.plan is not None
            assert done.output is not None
            for decision in done.output.decisions:
                for threshold in thresholds:
                    apart = abs(decision.confidence - threshold) > margin
                    assert apart.all(), "another machine may decide otherwise"
            canvases.append((engine.peek(request)[0], done.plan.rows))
        tokenizer = engine.tokenizer
        ends = engine.config.model.eos_token_ids
        moments = _moments(canvases, lambda token: "end" if token in ends else tokenizer.decode([token]).strip())
        yield from moments if part is None else _part(moments, part)


def of_script(example: Example, host: Host) -> Iterator[Moment]:
    """Moments of a scripted answer."""
    canvases = [(each.canvas, each.rows) for each in forwards(example, host)]
    return _moments(canvases, lambda token: chr(ord("a") + token))


def _moments(canvases: Iterable[tuple[Canvas, int]], spell: Callable[[int], str]) -> Iterator[Moment]:
    before: Canvas | None = None
    for canvas, rows in canvases:
        yield Moment(
            start=canvas.start,
            words=tuple(
                spell(token) if decided else ""
                for token, decided in zip(canvas.tokens.tolist(), canvas.decided.tolist(), strict=True)
            ),
            states=tuple(_state(at, canvas, before) for at in range(len(canvas.tokens))),
            rows=rows,
        )
        before = canvas


def _part(moments: Iterable[Moment], part: slice) -> Iterator[Moment]:
    """Some of the tokens, from when they are there until they are stored."""
    for moment in moments:
        cut = attrs.evolve(
            moment, start=moment.start + part.start, words=moment.words[part], states=moment.states[part]
        )
        if set(cut.states) == {"stored"}:
            return
        if cut.states:
            yield cut


def _state(at: int, canvas: Canvas, before: Canvas | None) -> str:
    if not canvas.decided[at]:
        return "mask"
    if before is None or at >= len(before.tokens) or not before.decided[at]:
        return "fresh"
    if canvas.tokens[at] != before.tokens[at]:
        return "edited"
    return "stored" if at < canvas.committed else "answer"
