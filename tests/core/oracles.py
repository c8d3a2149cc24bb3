"""Block decoding of one request, alone and without a cache: what every schedule must reproduce.

Written from the published decoding rules (blocks, activation, thresholds, stop conditions), with nothing of the
implementation in it: tokens are a plain list, and every step computes the whole sequence anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from diffulex_core.testing.fakes.network import LAYERS, choose, digest, embed, mix


@attrs.frozen(kw_only=True)
class Setting:
    """What the requests of one engine share; names as in the documentation."""

    block_size: int
    buffer_size: int
    full_prefix: bool
    mask: int
    eos: frozenset[int]
    max_model_len: int
    add_block: float
    semi_complete: float
    accept: float
    stability: float
    always_force: bool
    shifted: bool = False
    """A position is decided by the row before it."""


@attrs.frozen(kw_only=True)
class Ask:
    """One request."""

    prompt: tuple[int, ...]
    seed: int
    max_tokens: int
    ignore_eos: bool = False
    stop: frozenset[int] = frozenset()
    repetition: int | None = None


@attrs.frozen(kw_only=True)
class Answer:
    """How it ends: `rows` are those of each forward when no budget cuts the prompt."""

    tokens: tuple[int, ...]
    reason: str
    rows: tuple[int, ...]


def pairs(tokens: Sequence[int], ends: Sequence[int], fixed: Sequence[Sequence[int]] = ()) -> list[list[int]]:
    """K/V of every layer, then the final hidden numbers, of positions that see `[0, ends[p])`.

    `fixed` holds the K/V of leading positions, for each layer, where they were computed in an earlier forward.
    """
    layers = [[embed(token, position) for position, token in enumerate(tokens)]]
    for layer in range(LAYERS):
        if fixed:
            layers[layer][: len(fixed[layer])] = fixed[layer]
        hidden = layers[layer]
        seen = {end: digest(hidden[:end]) for end in set(ends)}
        layers.append([mix(own, seen[end]) for own, end in zip(hidden, ends, strict=True)])
    return layers


def sequence_pairs(
    tokens: Sequence[int], prompt: int, block: int, *, full_prefix: bool, first_step: bool = False
) -> list[list[int]]:
    """`pairs` of a whole sequence under the strategy's rules.

    With `full_prefix` the whole blocks of the prompt keep the K/V of the first forward, in which every prompt row saw
    the prompt and nothing else.
    """
    whole = prompt - prompt % block
    fixed = pairs(tokens[:prompt], [prompt] * prompt) if full_prefix and len(tokens) >= prompt else []
    ends = [visible_end(at, prompt, block, full_prefix=full_prefix, first_step=first_step) for at in range(len(tokens))]
    return pairs(tokens, ends, [layer[:whole] for layer in fixed])


def visible_end(position: int, prompt: int, block: int, *, full_prefix: bool, first_step: bool = False) -> int:
    """Exclusive end of what a position sees: its block, or the whole prompt where the strategy says so."""
    whole = prompt - prompt % block
    if full_prefix and (position < whole or (first_step and position < prompt)):
        return prompt
    return position - position % block + block


class Network(Protocol):
    """What decides positions: a whole sequence, computed anew in every step."""

    def __call__(
        self, setting: Setting, ask: Ask, tokens: Sequence[int], step: int
    ) -> Callable[[int], tuple[int, float]]:
        """The token and its confidence for each undecided position of `tokens`, prompt and running blocks."""
        ...


def hashes(setting: Setting, ask: Ask, tokens: Sequence[int], step: int) -> Callable[[int], tuple[int, float]]:
    """The network of hashes; a `Network`."""
    *_, hidden = sequence_pairs(
        tokens, len(ask.prompt), setting.block_size, full_prefix=setting.full_prefix, first_step=step == 0
    )
    return lambda at: choose(ask.seed, step, at, hidden[at - setting.shifted])


def decode_alone(setting: Setting, ask: Ask, network: Network = hashes) -> Answer:
    """Decode one request with nobody else around."""
    block, length = setting.block_size, len(ask.prompt)
    by_tokens = length + ask.max_tokens
    limit = min(by_tokens, setting.max_model_len)
    stops = set(ask.stop) | (set() if ask.ignore_eos else set(setting.eos))
    answer: dict[int, int] = {}

    def decided(position: int) -> bool:
        return position < length or position in answer

    def filled(number: int) -> float:
        return sum(decided(position) for position in range(number * block, number * block + block)) / block

    stored = length - length % block
    running: list[tuple[int, str]] = [(stored // block, "A")] if length % block else []
    rows: list[int] = []
    while True:
        stop_at = min((position for position, token in answer.items() if token in stops), default=None)
        following = running[-1][0] + 1 if running else stored // block
        if stop_at is None and following * block < limit:
            if not running:
                opens = True
            elif setting.buffer_size == 1:
                opens = running == [(following - 1, "T")]
            else:
                share = filled(following - 1)
                steady = 1.0 if share == 1 else 0.0
                room = len(running) < setting.buffer_size
                opens = room and share >= setting.add_block and steady >= setting.stability
            if opens:
                running.append((following, "A"))
        fed = [entry for entry in running if stop_at is None or entry[0] <= stop_at // block]

        end = (fed[-1][0] + 1) * block
        tokens = [ask.prompt[at] if at < length else answer.get(at, setting.mask) for at in range(end)]
        decide = network(setting, ask, tokens, len(rows))
        rows.append(end - (stored if rows else 0))

        taken: dict[int, int] = {}
        for number, state in fed:
            if state == "T":
                continue
            options = []
            for at in range(number * block, number * block + block):
                if not decided(at):
                    token, confidence = decide(at)
                    options.append((confidence, at, token))
            sure = [option for option in options if option[0] > setting.accept]
            if not sure and options:
                forced = setting.always_force or number == 0 or filled(number - 1) >= setting.semi_complete
                if forced:
                    sure = [max(options, key=lambda option: (option[0], -option[1]))]
            taken |= {at: token for _, at, token in sure}
        answer |= taken

        moved: list[tuple[int, str]] = []
        for number, state in running:
            if state == "T":
                stored = (number + 1) * block
            elif filled(number) == 1 and all(earlier == "T" for _, earlier in moved):
                moved.append((number, "T"))
            else:
                moved.append((number, "A"))
        running = moved

        done = length
        while done < limit and decided(done):
            done += 1
        given = [answer[at] for at in range(length, done)]
        cut = next((index for index, token in enumerate(given) if token in stops), None)
        if cut is not None:
            reason = "stop_token" if ask.ignore_eos or given[cut] not in setting.eos else "stop_eos"
            return Answer(tokens=tuple(given[:cut]), reason=reason, rows=tuple(rows))
        if done == limit:
            reason = "length_tokens" if by_tokens <= setting.max_model_len else "length_context"
            return Answer(tokens=tuple(given), reason=reason, rows=tuple(rows))
        run = ask.repetition
        if run is not None and len(given) >= run and len(set(given[-run:])) == 1:
            return Answer(tokens=tuple(given), reason="repetition", rows=tuple(rows))
