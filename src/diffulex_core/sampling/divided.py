"""Top-p, top-k and min-p over columns that several processes hold, without collecting rows anywhere.

Every limit keeps the first so many tokens in the order of probability, so together they are one cut in that order. Its
place is searched among all values that a float32 can have: the processes count and weigh what they hold above 256
values at a time, the sums tell which of them the cut lies between, and four such rounds leave a single value.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from diffulex_core.distributed import Communicator

_SHIFTS = (24, 16, 8, 0)
_STEPS = 256
_MIDDLE = 2**31


def restrict(logits: Tensor, top_p: Tensor, top_k: Tensor, min_p: Tensor, tp: Communicator) -> Tensor:
    """As `filters.restrict`, for this process's columns; six collectives of about 2,000 numbers a row.

    Args:
        logits: [rows, columns] float32.
        top_p, top_k, min_p: [rows], counted over all processes.
        tp: the processes that hold the vocabulary, in the order of their columns.
    Returns:
        [rows, columns] float32, a new tensor.
    """
    told = torch.stack((logits.amax(dim=1).double(), logits.double().logsumexp(dim=1)))
    best, log_masses = tp.gather(told).unbind(1)
    best, total = best.amax(dim=0)[:, None], log_masses.logsumexp(dim=0)[:, None]
    limits = _Limits(top_p=top_p[:, None], top_k=top_k[:, None])
    cut = _search(_Ordered.of(logits, total), limits, tp)

    keys = _keys(logits)
    tied = keys == cut.key
    place = tied.flip(1).cumsum(dim=1).flip(1) - 1 + tp.gather(cut.equal)[tp.rank + 1 :].sum(dim=0)
    each = (_values(cut.key).double() - total).exp()
    keep = (keys > cut.key) | (tied & limits.allow(cut.count + place, cut.mass + place * each))
    keep &= (logits - best.float()).exp() >= min_p[:, None]
    return logits.masked_fill(~keep, -torch.inf)


@attrs.frozen(kw_only=True, eq=False)
class _Limits:
    """[rows, 1] settings of the limits that depend on what comes before a token."""

    top_p: Tensor
    top_k: Tensor

    def allow(self, count: Tensor, mass: Tensor) -> Tensor:
        """Whether a token may stay that `count` tokens of probability `mass` together come before; [rows, n] each."""
        return (count < self.top_k) & ((mass <= self.top_p) | (self.top_p >= 1))


@attrs.frozen(kw_only=True, eq=False)
class _Ordered:
    """A process's tokens from the most probable on.

    Attributes:
        descent: [rows, columns] int64, ascending: each token's key, negative.
        before: [rows, columns + 1] float64: probability of the first so many of them.
    """

    descent: Tensor
    before: Tensor

    @classmethod
    def of(cls, logits: Tensor, total: Tensor) -> _Ordered:
        """`total` [rows, 1] float64 is the logarithm of the sum of exponentials over all processes."""
        ordered = logits.sort(dim=1, descending=True).values
        cumulative = (ordered.double() - total).exp().cumsum(dim=1)
        return cls(descent=-_keys(ordered), before=torch.nn.functional.pad(cumulative, (1, 0)))

    def reaching(self, keys: Tensor) -> Tensor:
        """[rows, n] keys -> [2, rows, n] float64: number and probability of the tokens whose key is at least that."""
        count = torch.searchsorted(self.descent, -keys, right=True)
        return torch.stack((count.double(), self.before.take_along_dim(count, dim=1)))


@attrs.frozen(kw_only=True, eq=False)
class _Cut:
    """Where the order is cut; [rows, 1] each.

    Attributes:
        key: int64: tokens of greater keys stay, those of smaller ones do not; among equals the limits decide.
        count, mass: float64: number and probability of the tokens of greater keys, over all processes.
        equal: float64: number of tokens with this key that this process holds.
    """

    key: Tensor
    count: Tensor
    mass: Tensor
    equal: Tensor


def _search(ordered: _Ordered, limits: _Limits, tp: Communicator) -> _Cut:
    """The smallest key of which the limits allow at least one token."""
    key = torch.zeros_like(limits.top_k)
    cut = _Cut(key=key, count=key, mass=key, equal=key)
    for shift in _SHIFTS:
        steps = cut.key + (torch.arange(_STEPS + 1, device=key.device) << shift)
        own = ordered.reaching(steps)
        everywhere = tp.sum(own.clone())
        step = (~limits.allow(*everywhere[:, :, 1:])).sum(dim=1, keepdim=True).clamp(max=_STEPS - 1)
        count, mass = everywhere.take_along_dim((step + 1)[None], dim=2)
        here, beyond = (own[0].take_along_dim(at, dim=1) for at in (step, step + 1))
        cut = _Cut(key=cut.key + (step << shift), count=count, mass=mass, equal=here - beyond)
    return cut


def _keys(values: Tensor) -> Tensor:
    """float32 -> int64 in [0, 2**32) in the same order; both zeros have one key."""
    return _folded((values + 0.0).view(torch.int32)).long() + _MIDDLE


def _values(keys: Tensor) -> Tensor:
    """The float32 that have these keys."""
    return _folded((keys - _MIDDLE).int()).view(torch.float32)


def _folded(bits: Tensor) -> Tensor:
    """Turn the order of negative numbers around, or back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
