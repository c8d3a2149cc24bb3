"""How sure the model is of each row: every process sums up its columns, and all put that together alike.

What a process says is normalised over its own columns; `weights` are the processes' shares of the probability. A
single process has all of it, weight 1, so that nothing is rounded twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffulex_core.distributed import Communicator
from diffulex_core.sampling.sums import log_sum, never_alone


class Measure(Protocol):
    """A measure that requests can choose in place of the token's probability."""

    def told(self, scores: Tensor) -> Tensor:
        """[rows, columns] float32 -> [facts, rows]: what one process says."""
        ...

    def settled(self, told: Tensor, weights: Tensor) -> Tensor:
        """[ranks, facts, rows] and [ranks, rows], float64 -> [rows] float32."""
        ...


@attrs.frozen
class Margin:
    """Probability of the most probable token minus that of the second."""

    def told(self, scores: Tensor) -> Tensor:
        top = scores.softmax(dim=1).topk(min(2, scores.shape[1]), dim=1).values
        return torch.stack((top[:, 0], top[:, -1] * (top.shape[1] > 1)))

    def settled(self, told: Tensor, weights: Tensor) -> Tensor:
        candidates = torch.where(weights[:, None] > 0, told * weights[:, None], 0.0).flatten(0, 1)
        top = candidates.topk(2, dim=0).values
        return (top[0] - top[1]).float()


@attrs.frozen
class InversePerplexity:
    """exp of the negative entropy, in (0, 1], so that it can be compared with a threshold."""

    def told(self, scores: Tensor) -> Tensor:
        logs = scores.log_softmax(dim=1)
        terms = torch.where(logs.isfinite(), logs.exp() * logs, 0.0)
        return never_alone(terms).sum(dim=1)[: len(scores)][None]

    def settled(self, told: Tensor, weights: Tensor) -> Tensor:
        total = (weights * told[:, 0] + torch.xlogy(weights, weights)).sum(dim=0)
        certainty: Tensor = total.float().exp().clamp(max=1)
        return certainty


@attrs.frozen
class NegativeEntropy:
    """The sum of p ln(p + 1e-10), at most 0: as Dream's samplers rank positions."""

    def told(self, scores: Tensor) -> Tensor:
        logs = scores.log_softmax(dim=1)
        terms = torch.where(logs.isfinite(), logs.exp() * (logs.exp() + 1e-10).log(), 0.0)
        return never_alone(terms).sum(dim=1)[: len(scores)][None]

    def settled(self, told: Tensor, weights: Tensor) -> Tensor:
        total: Tensor = (weights * told[:, 0] + torch.xlogy(weights, weights)).sum(dim=0).float()
        return total


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {"margin": Margin(), "neg_entropy": InversePerplexity(), "entropy": NegativeEntropy()}
)
"""By name; "prob" means the probability of the token. Requests choose among `sampling_params.CONFIDENCES`."""


@attrs.frozen(kw_only=True, eq=False)
class Settled:
    """What all processes agree on.

    Attributes:
        tokens: [rows] int64 ids.
        confidence: [rows] float32.
        finite: [rows] bool, False where a row held NaN, infinity or no possible token.
    """

    tokens: Tensor
    confidence: Tensor
    finite: Tensor


def settle(
    scores: Tensor,
    columns: Tensor,
    kinds: NDArray[np.str_],
    start: int,
    tp: Communicator,
    basis: Tensor | None = None,
) -> Settled:
    """Agree on one token for each row and on its confidence; a collective, which moves a few numbers for each row.

    Of what the processes offer for a row the most probable wins, ties go to the highest id.

    Args:
        scores: [rows, columns] float32, this process's part of the distribution.
        columns: [rows] int64 column that the process offers, -1 for none.
        kinds: [rows] names of measures.
        start: id of the first column.
        tp: the processes that hold the vocabulary.
        basis: [rows, columns] float32, this process's part of the distribution that confidence is taken from; None =
            `scores`.
    """
    basis = scores if basis is None else basis
    offered, weighed = _at(scores, columns), _at(basis, columns)
    told = [torch.stack((offered.double(), columns.double() + start, log_sum(basis), weighed.double()))]
    asked = []
    for kind, measure in MEASURES.items():
        at = np.flatnonzero(kinds == kind)
        if len(at):
            rows = torch.from_numpy(at).to(scores.device)
            asked.append((measure, rows))
            told.append(measure.told(basis[rows]).double())
    common, *others = _gather(told, tp)
    offers, ids, log_sums, weights = common.unbind(1)  # [ranks, rows] each
    tokens = torch.where(offers == offers.amax(dim=0), ids, 0.0).amax(dim=0)
    total = log_sums.logsumexp(dim=0)
    score = torch.where(ids == tokens, weights, -torch.inf).amax(dim=0)
    confidence = (score - total).exp().float()
    for (measure, rows), heard in zip(asked, others, strict=True):
        confidence[rows] = measure.settled(heard, (log_sums[:, rows] - total[rows]).exp())
    return Settled(
        tokens=tokens.long(),
        confidence=confidence,
        finite=total.isfinite(),
    )


def _at(scores: Tensor, columns: Tensor) -> Tensor:
    """[rows] each row's score at its column, minus infinity for none."""
    return scores.gather(1, columns.clamp(min=0)[:, None]).squeeze(1).masked_fill(columns < 0, -torch.inf)


def _gather(told: Sequence[Tensor], tp: Communicator) -> list[Tensor]:
    """Several tensors of one dtype in one collective: [...] of each process -> [ranks, ...]."""
    heard = tp.gather(torch.cat([each.flatten() for each in told]))
    parts = heard.split([each.numel() for each in told], dim=1)
    return [part.unflatten(1, each.shape) for part, each in zip(parts, told, strict=True)]
