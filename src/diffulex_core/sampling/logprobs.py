"""Log probabilities of what was chosen, and of the most probable tokens, for the requests that ask for them."""

from __future__ import annotations

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffulex_core.distributed import Communicator
from diffulex_core.distributed.ranges import Range
from diffulex_core.sampling.questions import log_probabilities
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.transfer import on_device
from diffulex_core.types import LogProbabilities, SamplingBatch


@attrs.frozen(kw_only=True, eq=False)
class Reported:
    """The rows of a call whose requests ask, and their distribution before it is tempered and limited.

    Attributes:
        rows: [n] int64 rows of the call.
        scores: [n, columns] float32, this process's part.
        most: how many of the most probable tokens the request that asks for most gets.
    """

    rows: Tensor
    scores: Tensor
    most: int

    @classmethod
    def of(cls, batch: SamplingBatch, scores: Tensor) -> Reported | None:
        """A copy of what is needed of `scores` [rows, columns]; None when no request of the batch asks."""
        found = asking(batch)
        if found is None:
            return None
        rows = on_device(found[0], scores.device)
        return cls(rows=rows, scores=scores[rows], most=found[1])

    def measure(self, chosen: Tensor, held: Range, tp: Communicator) -> Tensor:
        """What `reported` reads; a collective, which moves a few numbers for each row.

        Args:
            chosen: [all rows] int64 ids of the chosen tokens.
            held: the ids of the columns.
            tp: the processes that hold the vocabulary.
        Returns:
            [1 + 2 * most, all rows] float64: log probability of the chosen token, then the most probable tokens, then
            their log probabilities; NaN where nobody asks.
        """
        if len(self.rows) == 0:
            return spread((chosen.new_empty(self.most, 0), chosen.new_empty(1 + self.most, 0)), self.rows, len(chosen))
        return spread(log_probabilities(self.scores, held, chosen[self.rows], self.most, tp), self.rows, len(chosen))


def asking(batch: SamplingBatch) -> tuple[NDArray[np.int64], int] | None:
    """Rows whose requests ask, and how many tokens the one that asks for most gets; None when none does."""
    wanted = [params.logprobs for params in batch.params]
    if all(most is None for most in wanted):
        return None
    asks = np.array([most is not None for most in wanted])
    return np.flatnonzero(asks[batch.window_of_row]), max(most or 0 for most in wanted)


def spread(found: tuple[Tensor, Tensor], rows: Tensor, count: int) -> Tensor:
    """[1 + 2 * most, count] float64: what `log_probabilities` found for some rows, NaN for the others."""
    tokens, logs = found
    told = torch.full((1 + 2 * len(tokens), count), torch.nan, dtype=torch.float64, device=rows.device)
    told[:, rows] = torch.cat((logs[:1], tokens, logs[1:])).double()
    return told


def reported(told: NDArray[np.float64], params: SamplingParams) -> LogProbabilities | None:
    """Those of one request, out of `measure`'s result for its n rows."""
    if params.logprobs is None:
        return None
    most = len(told) // 2
    return LogProbabilities(
        chosen=told[0].astype(np.float32),
        tokens=told[1 : 1 + params.logprobs].T.astype(np.int64),
        most=told[1 + most : 1 + most + params.logprobs].T.astype(np.float32),
    )
