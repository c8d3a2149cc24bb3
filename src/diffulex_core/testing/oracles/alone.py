"""One request by itself, without pages, batch or schedule: the answer that every schedule must reproduce.

Slow and obvious: memory is a dictionary for each layer, every row is computed on its own, and nothing is cut.
"""

from __future__ import annotations

import attrs
import numpy as np

from diffulex_core.pattern import AttentionPattern, Extent, IntArray
from diffulex_core.protocols import GuidedReq, Req
from diffulex_core.testing.fakes.network import LAYERS, choose, digest, embed, favourites, join, mix
from diffulex_core.types import CARRIED, CompletionReason, Decision, Span

_MOST_STEPS = 10_000


@attrs.frozen(kw_only=True)
class Answer:
    """How a request ends when nobody else is there.

    Attributes:
        tokens: its output.
        reason: why it ended.
        rows: those of each of its forwards.
    """

    tokens: tuple[int, ...]
    reason: CompletionReason
    rows: tuple[int, ...]


class _Memory:
    """The pairs of one sequence, by layer and slot."""

    def __init__(self) -> None:
        self._layers: list[dict[int, int]] = [{} for _ in range(LAYERS)]

    def forward(self, span: Span, tokens: IntArray, prompt_len: int, pattern: AttentionPattern) -> list[int]:
        """Final hidden number of every row of a span that is fed `tokens`."""
        positions = range(span.start, span.end)
        shift = 0 if span.packed is None else span.packed - max(span.start, span.store_from)
        end = span.end + shift if span.visible_end is None else span.visible_end
        extent = Extent(prompt_len=prompt_len, phase=span.phase, final_end=span.store_until, end=end)
        hidden = [embed(token, position) for token, position in zip(tokens.tolist(), positions, strict=True)]
        for layer in self._layers:
            for position, number in zip(positions, hidden, strict=True):
                if position >= span.store_from:
                    layer[position + shift] = number
            numbers = list[int]()
            seen = dict[int, int]()
            for position, own in zip(positions, hidden, strict=True):
                last = end
                if span.packed is None:
                    last = min(end, int(pattern.key_end(np.array([position], dtype=np.int64), extent)[0]))
                if last not in seen:
                    seen[last] = digest([layer[slot] for slot in range(last)])
                numbers.append(mix(own, seen[last]))
            if span.refresh is not None:
                outside = hidden[: span.refresh.start] + hidden[span.refresh.end :]
                layer.update(enumerate(favourites(outside, span.refresh.keep)))
            hidden = numbers
        return hidden


def answer_alone(request: Req, pattern: AttentionPattern) -> Answer:
    """Serve a fresh request to its end with the network of hashes.

    Raises:
        ValueError: it asks for nothing although it is not done, or never ends.
    """
    guided = isinstance(request, GuidedReq) and request.guided
    memory, second = _Memory(), _Memory()
    stored, kept, rows = 0, 0, list[int]()
    while request.completion is None:
        span = request.plan(stored, None)
        if span is None or len(rows) > _MOST_STEPS:
            raise ValueError(f"request {request.request_id} does not end: after {len(rows)} steps it plans {span}")
        own = memory.forward(span, span.tokens, request.prompt_len, pattern)
        other = None
        if span.guidance is not None:
            other = second.forward(span, span.guidance.tokens, request.prompt_len, pattern)
        request.apply(span, _decide(request, span, own, other, kept))
        if span.keep is not None:
            kept = own[span.keep - span.start]
        stored = 0 if guided else span.store_until
        rows.append(span.rows)
    return Answer(tokens=tuple(request.output_tokens.tolist()), reason=request.completion, rows=tuple(rows))


def _decide(request: Req, span: Span, own: list[int], other: list[int] | None, kept: int) -> Decision:
    """What the sampler of the hash runner decides, group by group."""
    positions, tokens, confidences, accepted = list[int](), list[int](), list[float](), list[bool]()
    for group in span.groups:
        best = -1
        begin = len(tokens)
        for position, row in zip(group.positions.tolist(), group.rows.tolist(), strict=True):
            hidden = kept if row == CARRIED else own[row]
            if other is not None and span.guidance is not None:
                hidden = join(hidden, other[row], float(np.float32(span.guidance.scale)))
            token, confidence = choose(request.params.seed or 0, request.draws, position, hidden)
            positions.append(position)
            tokens.append(token)
            confidences.append(confidence)
            accepted.append(confidence > group.accept_threshold)
            if best < 0 or confidence > confidences[best]:
                best = len(tokens) - 1
        if group.force_one and best >= 0 and not any(accepted[begin:]):
            accepted[best] = True
    return Decision(
        positions=np.array(positions, dtype=np.int64),
        tokens=np.array(tokens, dtype=np.int64),
        confidence=np.array(confidences, dtype=np.float32),
        accepted=np.array(accepted, dtype=np.bool_),
    )
