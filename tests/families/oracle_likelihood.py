"""The published estimate of a log-likelihood, over whole sequences of a transformers network; nothing is ours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional

from tests.families.oracle_canvas import Network, guided
from tests.integration.engines import MASK


def masked_loss(
    net: Network, context: Sequence[int], answer: Sequence[int], hidden: Iterable[int], scale: float
) -> float:
    """Sum of the cross entropies at the hidden places of an answer."""
    places = sorted(hidden)
    shown = [MASK if place in places else token for place, token in enumerate(answer)]
    logits = guided(net, [*context, *shown], len(context), scale)[len(context) :]
    loss = functional.cross_entropy(logits[places].double(), torch.tensor(answer)[places], reduction="sum")
    return float(loss)


def estimate(
    net: Network, context: Sequence[int], answer: Sequence[int], draws: Iterable[Iterable[int]], scale: float = 0.0
) -> float:
    """The mean over draws, each a set of hidden places."""
    losses = [masked_loss(net, context, answer, each, scale) * len(answer) / len(list(each)) for each in draws]
    return -sum(losses) / len(losses)


def expectation(net: Network, context: Sequence[int], answer: Sequence[int], scale: float = 0.0) -> float:
    """What the estimate tends to: every masking of the answer, weighed by how likely it is drawn."""
    length, total = len(answer), 0.0
    for count in range(1, length + 1):
        maskings = list(itertools.combinations(range(length), count))
        assert len(maskings) == math.comb(length, count)
        mean = sum(masked_loss(net, context, answer, each, scale) for each in maskings) / len(maskings)
        total -= mean * length / count / length
    return total
