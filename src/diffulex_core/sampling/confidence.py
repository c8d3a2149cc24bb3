"""How sure the model is of each row: every process sums up its columns, and all put that together alike.

What a process says is normalised over its own columns; `weights` are the processes' shares of the probability. A
single process has all of it, weight 1, so that nothing is rounded twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Protocol, runtime_checkable

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffulex_core.distributed import Communicator
from diffulex_core.sampling.facts import Facts
from diffulex_core.sampling.sums import log_sum, never_alone
from diffulex_core.transfer import on_device


class Measure(Protocol):
    """A measure that requests can choose in place of the token's probability."""

    def told(self, scores: Tensor) -> Tensor:
        """[rows, columns] float32 -> [facts, rows]: what one process says."""
        ...

    def settled(self, told: Tensor, weights: Tensor) -> Tensor:
        """[ranks, facts, rows] and [ranks, rows], float64 -> [rows] float32."""
        ...


@runtime_checkable
class FactMeasure(Measure, Protocol):
    """A measure that facts suffice for, those of `Facts` besides the best value that are named here."""

    @property
    def needs_second(self) -> bool: ...

    @property
    def needs_entropy(self) -> bool: ...

    def told_by(self, facts: Facts) -> Tensor:
        """[facts, rows]: what one process says, as `told`."""
        ...


@attrs.frozen
class Margin:
    """Probability of the most probable token minus that of the second."""

    needs_second: ClassVar[bool] = True
    needs_entropy: ClassVar[bool] = False

    def told_by(self, facts: Facts) -> Tensor:
        assert facts.second is not None, "the second value is wanted"
        return (torch.stack((facts.best, facts.second)).double() - facts.log_sum).exp()

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

    needs_second: ClassVar[bool] = False
    needs_entropy: ClassVar[bool] = True

    def told_by(self, facts: Facts) -> Tensor:
        assert facts.entropy is not None, "the entropy is wanted"
        return facts.entropy[None]

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
    """The sum of p ln(p + 1e-10), at most 0: as Dream's samplers rank positions.

    The addend stands inside the logarithm of every token, so that no few sums over the row give it.
    """

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
    score = at_columns(scores, columns).double()
    offer = Offer(
        score=score,
        token=columns.double() + start,
        log_sum=log_sum(basis),
        weighed=score if basis is scores else at_columns(basis, columns).double(),
    )
    said = list[Said]()
    for measure, at in asked(kinds):
        rows = on_device(at, scores.device)
        said.append(Said(measure=measure, rows=rows, told=measure.told(basis[rows]).double()))
    return agree(offer, said, tp)


def asked(kinds: NDArray[np.str_]) -> list[tuple[Measure, NDArray[np.int64]]]:
    """The measures that somebody chose, and [n] whose rows."""
    found = [(measure, np.flatnonzero(kinds == kind)) for kind, measure in MEASURES.items()]
    return [(measure, rows) for measure, rows in found if len(rows)]


@attrs.frozen(kw_only=True, eq=False)
class Offer:
    """What a process offers for each row, and says of its columns; [rows] float64 each.

    Attributes:
        score: of the offered token, in the distribution that it is chosen from; minus infinity where none is offered.
        token: its id.
        log_sum: logarithm of the sum of exponentials, of the distribution that confidence is taken from.
        weighed: score of the token there.
    """

    score: Tensor
    token: Tensor
    log_sum: Tensor
    weighed: Tensor


@attrs.frozen(kw_only=True, eq=False)
class Said:
    """What a process says for a measure: [facts, n] float64 of n rows."""

    measure: Measure
    rows: Tensor
    told: Tensor


def agree(offer: Offer, said: Sequence[Said], tp: Communicator) -> Settled:
    """Put together what all processes offer and say; a collective."""
    common = torch.stack((offer.score, offer.token, offer.log_sum, offer.weighed))
    (heard, *others) = _gather([common, *(each.told for each in said)], tp)
    offers, ids, log_sums, weights = heard.unbind(1)  # [ranks, rows] each
    tokens = torch.where(offers == offers.amax(dim=0), ids, 0.0).amax(dim=0)
    total = log_sums.logsumexp(dim=0)
    score = torch.where(ids == tokens, weights, -torch.inf).amax(dim=0)
    confidence = (score - total).exp().float()
    for each, told in zip(said, others, strict=True):
        shares = (log_sums[:, each.rows] - total[each.rows]).exp()
        confidence[each.rows] = each.measure.settled(told, shares)
    return Settled(
        tokens=tokens.long(),
        confidence=confidence,
        finite=total.isfinite(),
    )


def at_columns(scores: Tensor, columns: Tensor) -> Tensor:
    """[rows] each row's score at its column, minus infinity for none."""
    return scores.gather(1, columns.clamp(min=0)[:, None]).squeeze(1).masked_fill(columns < 0, -torch.inf)


def _gather(told: Sequence[Tensor], tp: Communicator) -> list[Tensor]:
    """Several tensors of one dtype in one collective: [...] of each process -> [ranks, ...]."""
    heard = tp.gather(torch.cat([each.flatten() for each in told]))
    parts = heard.split([each.numel() for each in told], dim=1)
    return [part.unflatten(1, each.shape) for part, each in zip(parts, told, strict=True)]
