"""A kernel beside its twin: how far apart their results are, how long both take, and what bounds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from benchmarks.on_gpu.records import Record
from benchmarks.on_gpu.timing import Call, Cost, Limits, Timer, medians
from torch import Tensor

ALLOWED: Mapping[torch.dtype, float] = {torch.float32: 2e-3, torch.float16: 6e-3, torch.bfloat16: 3e-2}
"""What a result may be off by, relative to 1 and its own size, by the dtype of the work; fp32 products may use TF32."""


@attrs.frozen(kw_only=True, eq=False)
class Pair:
    """One kernel and its twin on one problem.

    Attributes:
        ours, twin: compute the same.
        cost: of the work.
        dtype: of the work.
        seen: what is compared of a result.
        rivals: other ways to compute the same, by name; the fastest counts.
    """

    ours: Call
    twin: Call
    cost: Cost
    dtype: torch.dtype
    seen: Callable[[object], Sequence[Tensor]] | None = None
    rivals: Mapping[str, Call] = attrs.field(factory=dict)

    def off(self) -> float:
        """The largest difference as a share of what is allowed; above 1 is wrong."""
        return max(
            off(one, two, self.dtype) for one, two in zip(self._seen(self.ours()), self._seen(self.twin()), strict=True)
        )

    def _seen(self, result: object) -> Sequence[Tensor]:
        if self.seen is not None:
            return self.seen(result)
        if isinstance(result, Tensor):
            return (result,)
        assert isinstance(result, tuple)
        return result


def off(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> float:
    """The largest difference as a share of what `dtype` allows; infinite where one is finite and the other is not."""
    if found.shape != wanted.shape:
        return float("inf")
    one, two = found.double(), wanted.double()
    same = (one == two) | (one.isnan() & two.isnan())
    apart = (one - two).abs() / (ALLOWED[dtype] * (1 + two.abs()))
    apart = torch.where(same, 0.0, apart.nan_to_num(nan=torch.inf, posinf=torch.inf))
    return float(apart.max()) if apart.numel() else 0.0


def measure(timer: Timer, pair: Pair, limits: Limits, *, rounds: int) -> Record:
    """Check and time a pair.

    Raises:
        WrongResult: it computes something else than its twin.
    """
    difference = pair.off()
    if not difference <= 1:
        raise WrongResult(f"off by {difference:.3g} times what {pair.dtype} allows")
    times = medians(timer, {"ours": pair.ours, "twin": pair.twin, **pair.rivals}, rounds=rounds)
    best = pair.cost.least_seconds(limits)
    record: Record = {
        "off": difference,
        "seconds": times,
        "bytes": pair.cost.bytes,
        "flops": pair.cost.flops,
        "best_seconds": best,
        "share": best / times["ours"],
    }
    if pair.rivals:
        rival = min(pair.rivals, key=times.__getitem__)
        record |= {"rival": rival, "of_rival": times[rival] / times["ours"]}
    record["summary"] = f"{times['ours'] * 1e6:.1f} us, {record['share']:.0%} of what the device can do"
    return record


class WrongResult(AssertionError):
    """A kernel does not compute what its twin computes."""
