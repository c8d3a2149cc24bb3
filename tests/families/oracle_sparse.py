"""The sparse cache said once more: transformers' layers one by one, attention and choices in plain loops.

Follows dLLM-Serve's description (arXiv 2512.17077): some full passes of a block, one that stores K/V of the tokens
outside that the block's queries like best, then passes of the block alone. Nothing is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Layer, q, k and v of the rows -> what they attend to."""

Pairs = list[tuple[Tensor, Tensor]]
"""For each layer the K and V [tokens, kv_heads, head_dim] that are kept."""


@attrs.frozen(kw_only=True)
class Sparse:
    """How much is kept, and when."""

    ratio: float = 0.5
    delay: int = 1
    per_head: bool = False
    pool: int = 3
    every: int | None = None
    drift: float | None = None
    force_first: bool = False

    def __str__(self) -> str:
        return "-".join(map(str, attrs.astuple(self)))


@attrs.frozen(kw_only=True, eq=False)
class Network:
    """A transformers decoder (Llama or Qwen2), taken apart.

    Attributes:
        model: the network.
        mask: id of the mask token.
        words: ids below this can be decided.
        shifted: row i predicts position i + 1.
    """

    model: Any
    mask: int
    words: int
    shifted: bool

    @torch.no_grad()
    def __call__(
        self, tokens: Sequence[int], start: int, attend: Callable[[int, Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """[rows, words] logits of tokens at positions from `start` on; `attend` gets layer, q, k and v."""
        body = self.model.model
        hidden = body.embed_tokens(torch.tensor(list(tokens)))
        cos, sin = (part[0] for part in body.rotary_emb(hidden[None], torch.arange(start, start + len(tokens))[None]))
        for index, layer in enumerate(body.layers):
            inner, normed = layer.self_attn, layer.input_layernorm(hidden)
            q, k, v = (
                project(normed).view(len(tokens), -1, inner.head_dim)
                for project in (inner.q_proj, inner.k_proj, inner.v_proj)
            )
            q, k = (_turned(x, cos, sin) for x in (q, k))
            hidden = hidden + inner.o_proj(attend(index, q, k, v).flatten(1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        logits: Tensor = self.model.lm_head(body.norm(hidden))[:, : self.words]
        logits[:, self.mask] = -torch.inf
        return logits

    def full(self, tokens: Sequence[int], block: range, keep: int, sparse: Sparse) -> tuple[Tensor, Pairs]:
        """Logits of what each position of the block would become, and the pairs that are kept."""
        pairs: Pairs = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            chosen = favourites(q, k, block, keep, sparse)
            pairs.append(
                tuple(
                    torch.stack([torch.stack([x[at, head] for at in ats]) for head, ats in enumerate(chosen)], dim=1)
                    for x in (k, v)
                )  # type: ignore[arg-type]
            )
            return attention(q, k, v)

        logits = self(tokens, 0, attend)
        return logits[[max(0, at - self.shifted) for at in block]], pairs

    def alone(self, tokens: Sequence[int], block: range, pairs: Pairs, *, row_before: bool) -> Tensor:
        """The same from the block's rows, and the row before it where it is needed."""
        first = block.start - row_before

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kept_k, kept_v = pairs[layer]
            return attention(q, torch.cat((kept_k, k[row_before:])), torch.cat((kept_v, v[row_before:])))

        logits = self(tokens[first : block.stop], first, attend)
        return logits[: len(block)] if row_before else _after_nothing(logits) if self.shifted else logits


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[rows, heads, head_dim] of rows that see all keys."""
    share = q.shape[1] // k.shape[1]
    heads = []
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // share].T / math.sqrt(q.shape[2])
        heads.append(scores.softmax(-1) @ v[:, head // share])
    return torch.stack(heads, dim=1)


def favourites(q: Tensor, k: Tensor, block: range, keep: int, sparse: Sparse) -> list[list[int]]:
    """For each KV head the positions that are kept."""
    outside = [at for at in range(len(k)) if at not in block]
    share, mean = q.shape[1] // k.shape[1], q[block.start : block.stop].mean(0)
    likes = [[float(mean[h] @ k[at, h // share]) / math.sqrt(q.shape[2]) for at in outside] for h in range(q.shape[1])]
    if sparse.per_head:
        lines = [[max(each) for each in zip(*likes[h : h + share], strict=True)] for h in range(0, q.shape[1], share)]
    else:
        lines = [[sum(each) for each in zip(*likes, strict=True)]] * k.shape[1]
    reach = sparse.pool // 2
    chosen = []
    for line in lines:
        best = [max(line[max(0, at - reach) : at + reach + 1]) for at in range(len(line))]
        order = sorted(range(len(line)), key=lambda at: (-best[at], at))[:keep]
        chosen.append(sorted(outside[at] for at in order))
    return chosen


@attrs.define
class Reader:
    """Passes over one sequence, counting rows."""

    network: Network
    sparse: Sparse
    rows: list[int] = attrs.field(factory=list)
    pairs: Pairs | None = None
    snapshot: list[int] = attrs.field(factory=list)
    step: int = 0
    since: int = 0

    def begin_block(self) -> None:
        self.pairs, self.step = None, 0

    def read(self, tokens: list[int], block: range, *, first_known: bool) -> Tensor:
        """Logits of the block's positions in the next step."""
        outside = len(tokens) - len(block)
        keep = min(outside, max(1, math.floor(outside * self.sparse.ratio + 1e-9)))
        stale = self.pairs is None or (self.sparse.every is not None and self.since >= self.sparse.every)
        if self.pairs is not None and self.sparse.drift is not None:
            moved = sum(tokens[at] != self.snapshot[at] for at in block) / len(block)
            stale = stale or moved >= self.sparse.drift
        if self.step < self.sparse.delay or stale:
            logits, pairs = self.network.full(tokens, block, keep, self.sparse)
            self.rows.append(len(tokens))
            if self.step >= self.sparse.delay:
                self.pairs, self.since, self.snapshot = pairs, 0, list(tokens)
        else:
            assert self.pairs is not None
            before = self.network.shifted and not (self.sparse.force_first and first_known)
            logits = self.network.alone(tokens, block, self.pairs, row_before=before)
            self.rows.append(len(block) + before)
        self.step += 1
        self.since += 1
        return logits


def llada(
    network: Network, sparse: Sparse, prompt: Sequence[int], length: int, block: int, steps: int, *, scale: float = 0.0
) -> tuple[list[int], list[int]]:
    """LLaDA's schedule: the canvas, and the rows of each step."""
    x = [*prompt, *[network.mask] * length]
    plain, blind = Reader(network, sparse), Reader(network, sparse)
    blocks = math.ceil(length / block)
    for index in range(blocks):
        share = max(1, steps // blocks + (index < steps % blocks))
        part = range(len(prompt) + index * block, min(len(prompt) + (index + 1) * block, len(x)))
        plain.begin_block()
        blind.begin_block()
        for step in range(share):
            count = len(part) // share + (step < len(part) % share)
            if count == 0:
                continue
            known = x[part.start] != network.mask
            logits = plain.read(x, part, first_known=known)
            if scale:
                without = blind.read([network.mask] * len(prompt) + x[len(prompt) :], part, first_known=known)
                logits = without + (scale + 1) * (logits - without)
                logits[:, network.mask] = -torch.inf
            sure = logits.double().softmax(-1).max(-1)
            order = sorted(
                (at for at in part if x[at] == network.mask), key=lambda at: (-sure.values[at - part.start], at)
            )
            if sparse.force_first and step == 0:
                order = [part.start, *(at for at in order if at != part.start)]
            for at in order[:count]:
                x[at] = int(sure.indices[at - part.start])
    rows = [one + (two if scale else 0) for one, two in zip(plain.rows, blind.rows or plain.rows, strict=True)]
    return x[len(prompt) :], rows


def dream(
    network: Network, sparse: Sparse, prompt: Sequence[int], length: int, steps: int, *, eps: float = 1e-3
) -> tuple[list[int], list[int]]:
    """Dream's maskgit_plus: the canvas, and the rows of each step that decides something."""
    x = [*prompt, *[network.mask] * length]
    reader, part = Reader(network, sparse), range(len(prompt), len(prompt) + length)
    times = torch.linspace(1, eps, steps + 1)
    for step in range(steps):
        masks = [at for at in part if x[at] == network.mask]
        count = int(len(masks) * (1 - times[step + 1] / times[step])) if step < steps - 1 else len(masks)
        if count == 0:
            continue
        sure = reader.read(x, part, first_known=False).double().softmax(-1).max(-1)
        for at in sorted(masks, key=lambda at: (-sure.values[at - part.start], at))[:count]:
            x[at] = int(sure.indices[at - part.start])
    return x[len(prompt) :], reader.rows


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [rows, heads, head_dim], the halves of a head paired."""
    left, right = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-right, left), dim=-1) * sin[:, None]


def _after_nothing(logits: Tensor) -> Tensor:
    """Shifted logits without a row before: nothing predicts the first position, which is known."""
    return torch.cat((torch.zeros_like(logits[:1]), logits[:-1]))
