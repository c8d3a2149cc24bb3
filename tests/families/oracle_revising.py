"""Decoding that revises its tokens, one request alone, over a transformers network: edit sampling and dmax.

Written from the published decoding rules, with nothing of the implementation in it: tokens are a plain list, masks are
-1, and every step computes the whole sequence anew under a block-causal mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs
import torch
from torch import Tensor
from transformers import PreTrainedModel

UNDECIDED = -1


@attrs.frozen(kw_only=True)
class Rules:
    """What a request is decoded with; names as in the configuration."""

    block: int = 8
    buffer: int = 2
    mask: int
    usable: int
    eos: int
    max_tokens: int
    ignore_eos: bool = True
    add_block: float = 0.1
    accept: float = 0.6
    edit: float = 0.0
    remask: float | None = None
    stability: float = 0.0
    penalty: float = 0.0
    post_edit: int = 16
    merge: str | None = None
    top_k: int = 1
    norm: bool = True
    weight: float = 1.0
    exact: bool = False
    confident: float = 0.9


@attrs.define
class Block:
    """A running block and what its steps left behind."""

    number: int
    stored_next: bool = False
    steps: int = 0
    full_steps: int = 0
    same: float = 0.0


@attrs.define
class Progress:
    """A request on its way."""

    tokens: list[int]
    prompt: int
    soft: dict[int, list[tuple[int, float]]] = attrs.field(factory=dict)
    remasked: set[int] = attrs.field(factory=set)


class Step(Protocol):
    """One block's part of a step: new tokens by position, and whether the block is done with."""

    def __call__(
        self, rules: Rules, sequence: Progress, block: Block, logits: Mapping[int, Tensor]
    ) -> tuple[dict[int, int], bool]: ...


def edit_step(
    rules: Rules, sequence: Progress, block: Block, logits: Mapping[int, Tensor]
) -> tuple[dict[int, int], bool]:
    """LLaDA2.1's JointThreshold."""
    old = sequence.tokens
    best: dict[int, tuple[int, float]] = {}
    present: dict[int, float] = {}
    for at, row in logits.items():
        row = row.clone()
        if rules.penalty and at % rules.block and old[at - 1] != UNDECIDED:
            row[old[at - 1]] -= rules.penalty
        chances = row.double().softmax(0)
        best[at] = top(chances, 1)[0]
        if old[at] != UNDECIDED:
            present[at] = float(chances[old[at]])
    masks = [at for at in logits if old[at] == UNDECIDED]
    if not masks:
        block.full_steps += 1
    fills = [at for at in masks if best[at][1] > rules.accept]
    if masks and not fills:
        fills = [max(masks, key=lambda at: (best[at][1], -at))]
    edits = [at for at in present if best[at][0] != old[at] and best[at][1] > rules.edit]
    late = block.steps >= rules.block + rules.post_edit
    block.steps += 1
    same = [best[at][0] == old[at] for at in present]
    block.same = 1.0 if late or not same else sum(same) / len(same)
    if late:
        return {at: best[at][0] for at in masks + edits}, True
    moved = fills + edits
    if not moved or (not masks and block.full_steps > rules.post_edit):
        return {}, True
    writes = {at: best[at][0] for at in moved}
    if rules.remask is not None and masks:
        for at, chance in present.items():
            if at not in edits and at not in sequence.remasked and chance < rules.remask:
                writes[at] = UNDECIDED
                sequence.remasked.add(at)
    return writes, False


def dmax_step(
    rules: Rules, sequence: Progress, block: Block, logits: Mapping[int, Tensor]
) -> tuple[dict[int, int], bool]:
    """DMax's leftmost run, refreshed tokens and merge descriptors."""
    old = sequence.tokens
    chances = {at: row.double().softmax(0) for at, row in logits.items()}
    best = {at: top(each, 1)[0] for at, each in chances.items()}
    sure = {at: best[at][1] if rules.exact or old[at] == UNDECIDED else 1.0 for at in best}
    masks = [at for at in logits if old[at] == UNDECIDED]
    if not masks:
        block.full_steps += 1
    taken = masks[:1]
    for at in masks:
        if sure[at] < rules.accept:
            break
        taken = masks[: masks.index(at) + 1]
    target = {at: best[at][0] for at in logits if old[at] != UNDECIDED or at in taken}
    changed = [at for at, token in target.items() if token != old[at]]
    kept = [target[at] == old[at] for at in target if old[at] != UNDECIDED]
    block.same = sum(kept) / len(kept) if kept else 1.0
    for at in logits:
        sequence.soft.pop(at, None)
        if rules.merge is None or at not in target:
            continue
        if rules.merge == "iter_smooth_topk":
            pairs = [(token, rules.weight * chance) for token, chance in top(chances[at], rules.top_k)]
            sequence.soft[at] = [(target[at], 1.0), *pairs]
        elif sure[at] < 1:
            others = [pair for pair in top(chances[at], rules.top_k) if pair[0] != target[at]]
            pairs = [(target[at], sure[at]), *others[: rules.top_k - 1]]
            sequence.soft[at] = [*pairs, (rules.mask, max(0.0, 1 - sum(chance for _, chance in pairs)))]
    done = not changed or all(each >= rules.confident for each in sure.values()) or block.full_steps > rules.post_edit
    return target, done


def top(chances: Tensor, count: int) -> list[tuple[int, float]]:
    """The most probable tokens, most probable first, ties to the highest id."""
    order = sorted(range(len(chances)), key=lambda token: (-float(chances[token]), -token))
    return [(token, float(chances[token])) for token in order[:count]]


def decode(model: PreTrainedModel, step: Step, rules: Rules, prompt: Sequence[int]) -> tuple[list[int], int]:
    """The answer of one request and the forwards that it takes."""
    size, begin = rules.block, len(prompt)
    limit = begin + rules.max_tokens
    sequence = Progress(tokens=list(prompt), prompt=begin)
    running: list[Block] = []
    stored = begin // size
    if begin % size:
        running.append(Block(number=stored, steps=1))
    forwards = 0
    while True:
        fill(sequence, (stored + len(running)) * size)
        answer = sequence.tokens[begin:]
        following = stored + len(running)
        ended = not rules.ignore_eos and rules.eos in answer
        if following * size < limit and not ended and opens(rules, sequence, running):
            running.append(Block(number=following))
            fill(sequence, (following + 1) * size)
        logits = network(model, rules, sequence)
        forwards += 1
        outcome: dict[int, bool] = {}
        writes: dict[int, int] = {}
        for block in running:
            if not block.stored_next:
                span = range(max(begin, block.number * size), (block.number + 1) * size)
                new, outcome[block.number] = step(rules, sequence, block, {at: logits[at] for at in span})
                writes |= new
        for at, token in writes.items():
            sequence.tokens[at] = token
        left = [block for block in running if not block.stored_next]
        stored += len(running) - len(left)
        running = left
        for block in running:
            span = range(block.number * size, (block.number + 1) * size)
            if not outcome[block.number] or any(sequence.tokens[at] == UNDECIDED for at in span):
                break
            block.stored_next = True
        final = min(limit, max(begin, (stored + sum(block.stored_next for block in running)) * size))
        answer = sequence.tokens[begin:final]
        if not rules.ignore_eos and rules.eos in answer:
            return answer[: answer.index(rules.eos)], forwards
        if final == limit:
            return answer, forwards


def opens(rules: Rules, sequence: Progress, running: Sequence[Block]) -> bool:
    """Whether one more block starts."""
    if not running:
        return True
    if len(running) >= rules.buffer:
        return rules.buffer == 1 and running[0].stored_next
    last = running[-1]
    span = sequence.tokens[last.number * rules.block : (last.number + 1) * rules.block]
    filled = sum(token != UNDECIDED for token in span) / rules.block
    return filled >= rules.add_block and last.same >= rules.stability


def fill(sequence: Progress, length: int) -> None:
    sequence.tokens += [UNDECIDED] * (length - len(sequence.tokens))


def network(model: PreTrainedModel, rules: Rules, sequence: Progress) -> Tensor:
    """[positions, usable] logits of the whole sequence; the mask token has none."""
    table = model.get_input_embeddings().weight
    length = len(sequence.tokens)
    rows = [table[rules.mask if token == UNDECIDED else token] for token in sequence.tokens]
    for at, pairs in sequence.soft.items():
        mixed = sum((share * table[token] for token, share in pairs), torch.zeros_like(table[0]))
        if rules.merge == "dmax_topk" and rules.norm:
            mixed = mixed * sum(share * float(table[token].norm()) for token, share in pairs) / mixed.norm()
        rows[at] = mixed
    seen = torch.tensor(
        [[key < (row // rules.block + 1) * rules.block for key in range(length)] for row in range(length)]
    )
    bias = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        output = model(
            inputs_embeds=torch.stack(rows)[None],
            position_ids=torch.arange(length)[None],
            attention_mask=bias[None, None],
            use_cache=False,
        )
    logits: Tensor = output.logits[0, :, : rules.usable].clone()
    logits[:, rules.mask] = -torch.inf
    return logits
