"""The published fixed-length samplers said once more, over whole sequences of a transformers network; nothing is ours.

`llada` follows LLaDA's `generate`, `dream` follows Dream's `diffusion_generate`, both greedy and for one prompt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from safetensors.torch import load_file
from torch import Tensor

from diffulex_dream.oracle import qwen2
from diffulex_llada.oracle import hf_reference
from tests.integration.engines import MASK, PARITY

Network = Callable[[Sequence[int]], Tensor]
"""Token ids of a sequence -> [length, vocabulary]: what each position would become."""


@cache
def network(checkpoint: str) -> Network:
    """A parity checkpoint under full attention, with Dream's logits moved to the positions they are of."""
    folder = PARITY / "checkpoints" / checkpoint
    config = json.loads((folder / "config.json").read_text())
    build = {"llada": hf_reference, "dream": qwen2}[checkpoint]
    model = build(config, load_file(folder / "model.safetensors"))

    @torch.no_grad()
    def logits(tokens: Sequence[int]) -> Tensor:
        everything = torch.zeros(1, 1, len(tokens), len(tokens))
        rows: Tensor = model(input_ids=torch.tensor([list(tokens)]), attention_mask=everything).logits[0]
        return torch.cat((rows[:1], rows[:-1])) if checkpoint == "dream" else rows

    return logits


def guided(net: Network, tokens: list[int], prompt: int, scale: float) -> Tensor:
    """Logits of a canvas, led away from what they would be without the prompt."""
    if scale == 0:
        return net(tokens)
    without = net([MASK] * prompt + tokens[prompt:])
    return without + (scale + 1) * (net(tokens) - without)


def llada(
    net: Network,
    prompt: Sequence[int],
    length: int,
    block: int,
    steps: int,
    *,
    scale: float = 0.0,
    suppressed: Sequence[int] = (),
    deferred: Sequence[int] = (),
) -> tuple[list[int], int]:
    """The canvas and how many forwards it took. Blocks that do not divide evenly: as docs/strategies say."""
    x = [*prompt, *[MASK] * length]
    blocks, forwards = math.ceil(length / block), 0
    for index in range(blocks):
        share = max(1, steps // blocks + (index < steps % blocks))
        begin = len(prompt) + index * block
        end = min(begin + block, len(x))
        masks = end - begin
        for step in range(share):
            count = masks // share + (step < masks % share)
            if count == 0:
                continue
            logits = guided(net, x, len(prompt), scale)
            logits[:, [MASK, *suppressed]] = -torch.inf
            sure = logits.double().softmax(-1).max(-1)
            forwards += 1
            late = torch.isin(sure.indices, torch.tensor([*deferred], dtype=torch.int64))
            worth = sure.values.masked_fill(late, -torch.inf).tolist()
            order = sorted((at for at in range(begin, end) if x[at] == MASK), key=lambda at: (-worth[at], at))
            for at in order[:count]:
                x[at] = int(sure.indices[at])
    return x[len(prompt) :], forwards


def dream(
    net: Network,
    prompt: Sequence[int],
    length: int,
    steps: int,
    *,
    alg: str,
    eps: float = 1e-3,
    top_p: float = 1.0,
    top_k: int | None = None,
    scale: float = 0.0,
    suppressed: Sequence[int] = (),
    deferred: Sequence[int] = (),
) -> tuple[list[int], list[int]]:
    """The canvas and how many positions each step decided."""
    x = torch.tensor([*prompt, *[MASK] * length])
    times, counts = torch.linspace(1, eps, steps + 1), []
    for step in range(steps):
        masked = x == MASK
        share = 1 - times[step + 1] / times[step]
        count = int(masked.sum() * share) if step < steps - 1 else int(masked.sum())
        counts.append(count)
        if count == 0:
            continue
        logits = guided(net, x.tolist(), len(prompt), scale)
        logits[:, [MASK, *suppressed]] = -torch.inf
        sure, token = _measured(_limited(logits, top_p, top_k).softmax(-1), alg)
        sure[torch.isin(token, torch.tensor([*deferred], dtype=torch.int64))] = torch.finfo(torch.float32).min
        order = torch.where(masked, sure, -torch.inf).topk(count).indices
        x[order] = token[order]
    return x[len(prompt) :].tolist(), counts


def _limited(logits: Tensor, top_p: float, top_k: int | None) -> Tensor:
    ordered, ids = logits.sort(descending=True)
    mass = ordered.softmax(-1).cumsum(-1)
    rank = torch.arange(logits.shape[1])
    drop = torch.cat((torch.zeros(len(mass), 1), mass[:, :-1]), dim=1) > top_p if top_p < 1 else rank < 0
    drop = drop | (rank >= (top_k or logits.shape[1]))
    return logits.scatter(1, ids, ordered.masked_fill(drop, -torch.inf))


def _measured(probabilities: Tensor, alg: str) -> tuple[Tensor, Tensor]:
    best, token = probabilities.max(-1)
    if alg == "topk_margin":
        two = probabilities.topk(2).values
        return two[:, 0] - two[:, 1], token
    if alg == "entropy":
        return (probabilities * (probabilities + 1e-10).log()).sum(-1), token
    return best, token
