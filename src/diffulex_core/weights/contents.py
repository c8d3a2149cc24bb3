"""What is wrong with the numbers of a checkpoint: tied copies that differ, NaN and infinity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from diffulex_core.weights.ledger import Claim

CHUNK = 2**22
"""Numbers of a tensor that are compared at once."""


def differ(folder: Path, ties: Iterable[tuple[Claim, Claim]]) -> list[str]:
    """A sentence for each pair of claims on one tied parameter whose contents are not equal there."""
    return [
        f"{first.stored.where} and {second.stored.where} differ, but the model ties them ({first.label})."
        for first, second in ties
        if first.readable and second.readable and not _equal(folder, first, second)
    ]


def non_finite(claim: Claim) -> Iterator[str]:
    """A sentence if what was just loaded holds NaN or infinite numbers: damaged, or too large for the dtype."""
    loaded = claim.part.view
    # The extremes of numbers with a NaN among them are NaN.
    if not loaded.is_floating_point() or not loaded.numel() or all(end.isfinite() for end in loaded.aminmax()):
        return
    nan, infinite = int(loaded.isnan().sum()), int(loaded.isinf().sum())
    at = [int(place) for place in (~loaded.isfinite()).nonzero()[0]]
    yield (
        f"{claim.stored.where} ({claim.stored.dtype}) gives {claim.label} {nan} NaN and {infinite} infinite numbers of"
        f" {loaded.numel()} in {str(loaded.dtype).removeprefix('torch.')}, the first at {at}."
    )


def _equal(folder: Path, first: Claim, second: Claim) -> bool:
    with (
        safe_open(folder / first.stored.file, framework="pt") as one,
        safe_open(folder / second.stored.file, framework="pt") as other,
        torch.no_grad(),
    ):
        dtype = first.part.view.dtype
        pairs = zip(_chunks(first, one), _chunks(second, other), strict=True)
        return all(_same(a.to(dtype), b.to(dtype)) for a, b in pairs)


def _chunks(claim: Claim, stored: safe_open) -> Iterator[Tensor]:
    """The numbers that the claim holds for its target, flat; a transformed tensor is made whole first."""
    name, shape = claim.stored.name, claim.stored.shape or ()
    if claim.resolved.transform is not None or not shape:
        tensor: Tensor = stored.get_tensor(name)
        transformed = claim.resolved.transform(tensor) if claim.resolved.transform is not None else tensor
        yield from transformed.flatten().split(CHUNK)
        return
    rows = stored.get_slice(name)
    step = max(1, CHUNK * shape[0] // max(1, torch.Size(shape).numel()))
    for start in range(0, shape[0], step):
        yield from rows[start : start + step].flatten().split(CHUNK)


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal as stored numbers: NaN equals NaN."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all()) if a.is_floating_point() else torch.equal(a, b)
