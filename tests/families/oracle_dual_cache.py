"""Decoding one request with the dual cache of Fast-dLLM v2, alone, in plain Python, keeping K/V by hand.

Written from the published rules: keys and values are lists by position, a pass overwrites those of the positions that
it feeds, and what it does not feed stays as it was, stale or not. The network behind is a `Memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import attrs
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from diffulex_core.testing.fakes.network import LAYERS, choose, digest, embed, mix
from tests.core.oracles import Answer, Ask

Decide = Callable[[int, int], tuple[int, float]]
"""Row and position that it decides -> token and confidence."""


class Memory(Protocol):
    """A network and the keys and values of one sequence."""

    def feed(self, tokens: Sequence[int], start: int, visible_end: int, step: int) -> Decide:
        """Compute `tokens` at `start` and on, keep their K/V, and let every row see `[0, visible_end)`."""
        ...


@attrs.frozen(kw_only=True)
class DualSetting:
    """What the requests of one engine share."""

    sub_size: int
    sub_blocks: int
    use_block_cache: bool
    mask: int
    eos: frozenset[int]
    max_model_len: int
    accept: float

    @property
    def block_size(self) -> int:
        return self.sub_size * self.sub_blocks


def decode_dual_cache(
    setting: DualSetting, ask: Ask, memory: Memory, lost: Collection[int] = ()
) -> tuple[Answer, list[str]]:
    """The answer, and the modes of its steps.

    Args:
        lost: steps before which the provisional K/V are lost (a preemption).
    """
    size, sub, mask = setting.block_size, setting.sub_size, setting.mask
    by_tokens = len(ask.prompt) + ask.max_tokens
    limit = min(by_tokens, setting.max_model_len)
    stops = set(ask.stop) | (set() if ask.ignore_eos else set(setting.eos))
    modes: list[str] = []
    rows: list[int] = []
    tokens: list[int] = list(ask.prompt)
    start = len(tokens) // size * size

    def finished() -> Answer | None:
        done = next((at for at in range(len(ask.prompt), len(tokens)) if tokens[at] == mask), len(tokens))
        given = tokens[len(ask.prompt) : min(done, limit)]
        cut = next((index for index, token in enumerate(given) if token in stops), None)
        if cut is not None:
            eos = not ask.ignore_eos and given[cut] in setting.eos
            return Answer(tokens=tuple(given[:cut]), reason="stop_eos" if eos else "stop_token", rows=tuple(rows))
        if done >= limit:
            reason = "length_tokens" if by_tokens <= setting.max_model_len else "length_context"
            return Answer(tokens=tuple(given), reason=reason, rows=tuple(rows))
        run = ask.repetition
        if run is not None and len(given) >= run and len(set(given[-run:])) == 1:
            return Answer(tokens=tuple(given), reason="repetition", rows=tuple(rows))
        return None

    def note(mode: str, fed: int) -> None:
        modes.append(mode)
        rows.append(fed)

    pending: int | None = None
    unfed = start
    for begin in range(0, start, size):
        decide = memory.feed(tokens[begin : begin + size], begin, begin + size, 0)
        if begin + size == len(tokens):
            pending = decide(begin + size - 1, begin + size)[0]
            note("seed", unfed)
            unfed = 0
    while True:
        tokens += [mask] * (start + size - len(tokens))
        if pending is not None:
            tokens[start] = pending
        if (answer := finished()) is not None and rows:
            return answer, modes
        full_pass_kept = False
        while mask in tokens[start:]:
            first = tokens.index(mask, start)
            begin = first // sub * sub
            if len(modes) in lost:
                full_pass_kept = False
            if first == begin or not full_pass_kept or not setting.use_block_cache:
                decide = memory.feed(tokens[start:], start, start + size, len(modes))
                note("full", size + unfed)
                full_pass_kept, unfed = True, 0
            else:
                decide = memory.feed(tokens[begin : begin + sub], begin, start + size, len(modes))
                note("refine", sub)
            choices = {at: decide(at - 1, at) for at in range(begin, begin + sub) if tokens[at] == mask}
            sure = [at for at, (_, confidence) in choices.items() if confidence > setting.accept]
            for at in sure or [max(choices, key=lambda at: (choices[at][1], -at))]:
                tokens[at] = choices[at][0]
            if (answer := finished()) is not None:
                return answer, modes
        decide = memory.feed(tokens[start:], start, start + size, len(modes))
        pending = decide(start + size - 1, start + size)[0]
        note("commit", size)
        start += size


class HashMemory:
    """The network of hashes."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._kept: list[dict[int, int]] = [{} for _ in range(LAYERS)]

    def feed(self, tokens: Sequence[int], start: int, visible_end: int, step: int) -> Decide:
        hidden = [embed(token, start + index) for index, token in enumerate(tokens)]
        for kept in self._kept:
            kept.update({start + index: number for index, number in enumerate(hidden)})
            seen = digest([kept[at] for at in range(visible_end)])
            hidden = [mix(own, seen) for own in hidden]
        return lambda row, position: choose(self._seed, step, position, hidden[row - start])


class NetworkMemory:
    """A transformers decoder; the cache that it is handed holds exactly the keys that are not fed."""

    def __init__(self, model: PreTrainedModel, mask: int) -> None:
        self._model = model
        self._mask = mask
        self._kept: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in range(model.config.num_hidden_layers)]

    def feed(self, tokens: Sequence[int], start: int, visible_end: int, step: int) -> Decide:
        fed = range(start, start + len(tokens))
        others = [at for at in range(visible_end) if at not in fed]
        cache = DynamicCache()
        if others:
            for layer, kept in enumerate(self._kept):
                keys, values = (torch.stack([kept[at][part] for at in others], dim=1)[None] for part in (0, 1))
                cache.update(keys, values, layer)
        with torch.inference_mode():
            logits: Tensor = self._model(
                input_ids=torch.tensor([list(tokens)]),
                position_ids=torch.tensor([list(fed)]),
                attention_mask=torch.zeros(1, 1, len(fed), len(others) + len(fed)),
                past_key_values=cache,
                use_cache=True,
            ).logits[0]
        for kept, layer in zip(self._kept, cache.layers, strict=True):
            keys, values = (tensor[0, :, len(others) :] for tensor in (layer.keys, layer.values))
            kept.update({at: (keys[:, index], values[:, index]) for index, at in enumerate(fed)})
        logits = logits.clone()
        logits[:, self._mask] = -torch.inf
        probabilities = logits.double().softmax(-1)

        def decide(row: int, position: int) -> tuple[int, float]:
            confidence, token = probabilities[row - start].max(0)
            return int(token), float(confidence)

        return decide
