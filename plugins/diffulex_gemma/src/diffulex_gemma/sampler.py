"""What the network says of a canvas: the most probable tokens, drawn ones, and how unsure it is of each position."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.distributed.ranges import Range
from diffulex_core.plugin import Decision, SamplingBatch
from diffulex_core.sampling import choose
from diffulex_core.sampling.logprobs import Reported, reported
from diffulex_core.transfer import on_device
from diffulex_gemma.decision import CanvasDecision
from diffulex_gemma.draws import COUNTER, Draws, seed_of
from diffulex_gemma.processed import biased, processed


class CanvasSampler:
    """A `BelievingSampler` that proposes; the request decides.

    The vocabulary may be divided among processes: each passes its own columns, all call at once with the same batch,
    and all get the same decisions, by two exchanges of a few numbers a row. Results cross to the host in one copy.
    """

    def __init__(
        self, *, vocab_size: int, forbidden: frozenset[int], tp: Communicator = ALONE, draws: Draws = COUNTER
    ) -> None:
        """
        Args:
            vocab_size: ids at or above it are never chosen (padding rows of the head).
            forbidden: must be empty: the family has no mask token.
            tp: the processes that hold the vocabulary; see `DiffusionModel.logits` for who holds what.
            draws: where random numbers come from.
        """
        assert not forbidden, "a family with a mask token"
        self._vocab_size, self._tp, self._draws = vocab_size, tp, draws

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        """See `Sampler`; the decisions are `CanvasDecision`s."""
        return self.decide(self.score(logits, batch), batch)

    def score(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """See `PartwiseSampler`: what `_settle` says of each row, then what requests want reported."""
        return self.score_and_believe(logits, batch)[0]

    def decide(self, scored: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        """See `PartwiseSampler`; the one copy to the host."""
        return _decisions(scored.cpu().numpy(), batch)

    def score_and_believe(self, logits: Tensor, batch: SamplingBatch) -> tuple[Tensor, Tensor]:
        """See `BelievingSampler`."""
        start = self._tp.rank * logits.shape[1]
        held = Range(start, min(max(self._vocab_size - start, 0), logits.shape[1]), self._vocab_size)
        own = biased(logits, batch, held)
        scores = processed(own, batch, held, self._tp)
        numbers = on_device(self._numbers(batch), scores.device)
        told = _settle(scores, choose.draw(scores, numbers, self._tp), held.start, self._tp)
        report = Reported.of(batch, own)
        if report is not None:
            told = torch.cat((told, report.measure(told[0].long(), held, self._tp)))
        return told, scores

    def _numbers(self, batch: SamplingBatch) -> np.typing.NDArray[np.floating]:
        seeds = np.array([seed_of(params) for params in batch.params], dtype=np.int64)
        draws = np.array(batch.draws, dtype=np.int64)
        return self._draws.sampling(seeds[batch.window_of_row], draws[batch.window_of_row], batch.positions)


def _settle(scores: Tensor, drawn: Tensor, start: int, tp: Communicator) -> Tensor:
    """[5, rows] float64: best token, its probability, drawn token, entropy in nats, whether the row is finite.

    Every process says of its own columns the best score and its id, the logarithm of the sum of exponentials, the
    entropy of its part normalised, and the id that was drawn; what all said is put together alike everywhere.

    Args:
        scores: [rows, columns] float32, this process's part of the distribution.
        drawn: [rows] int64 column that was drawn, -1 where another process holds it.
        start: id of the first column.
        tp: the processes that hold the vocabulary.
    """
    best = choose.greedy(scores)
    told = tp.gather(
        torch.stack((
            scores.gather(1, best[:, None]).squeeze(1).double(),
            best.double() + start,
            *_mass_and_entropy(scores),
            torch.where(drawn < 0, -1, drawn + start).double(),
        ))
    )  # fmt: skip
    values, ids, log_masses, entropies, drawn_ids = told.unbind(1)  # [ranks, rows] each
    value = values.amax(dim=0)
    total = log_masses.logsumexp(dim=0)
    shares = (log_masses - total).exp()
    entropy = (torch.where(shares > 0, shares * entropies, 0.0) - torch.xlogy(shares, shares)).sum(dim=0)
    return torch.stack((
        torch.where(values == value, ids, -1.0).amax(dim=0),
        (value - total).exp(),
        drawn_ids.amax(dim=0),
        entropy.clamp(min=0),
        total.isfinite().double(),
    ))  # fmt: skip


def _mass_and_entropy(scores: Tensor) -> tuple[Tensor, Tensor]:
    """[rows] float64 each: logarithm of the sum of exponentials, and entropy of the columns by themselves."""
    # torch splits the sum of a single row among threads, which changes its bits.
    rows = scores.expand(2, -1) if len(scores) == 1 else scores
    logs = rows.log_softmax(dim=1)
    entropy = -torch.where(logs.isfinite(), logs.exp() * logs, 0.0).sum(dim=1)
    return rows.logsumexp(dim=1)[: len(scores)].double(), entropy[: len(scores)].double()


def _decisions(host: np.typing.NDArray[np.float64], batch: SamplingBatch) -> list[Decision]:
    tokens, drawn = host[0].astype(np.int64), host[2].astype(np.int64)
    confidence, entropy, finite = host[1].astype(np.float32), host[3], host[4] > 0
    bounds = np.searchsorted(batch.window_of_row, np.arange(len(batch.windows) + 1))
    return [
        CanvasDecision(
            positions=batch.positions[begin:end],
            tokens=tokens[begin:end],
            confidence=confidence[begin:end],
            accepted=np.zeros(end - begin, dtype=np.bool_),
            finite=bool(finite[begin:end].all()),
            drawn=drawn[begin:end],
            entropy=entropy[begin:end],
            logprobs=reported(host[5:, begin:end], params),
        )
        for params, (begin, end) in zip(batch.params, pairwise(bounds.tolist()), strict=True)
    ]
