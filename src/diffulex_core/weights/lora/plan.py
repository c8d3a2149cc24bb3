"""Matching an adapter with a network: every layer, tensor and shape is accounted for before anything changes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

import attrs
import torch
from safetensors import safe_open
from torch import Tensor

from diffulex_core.weights.files import StoredTensor
from diffulex_core.weights.lora.config import AdapterConfig
from diffulex_core.weights.lora.sites import Obstacle, Site, Sites
from diffulex_core.weights.lora.tensors import AdapterTensors, Pair
from diffulex_core.weights.storage import fill

_FLOATS = ("F32", "BF16", "F16", "F64")


@attrs.frozen(kw_only=True, eq=False)
class Update:
    """What an adapter adds to the weight of one layer: `scale · B A`, of which this process holds a share.

    Attributes:
        site: the layer.
        a: A [rank, in], as far as the inputs are held here.
        b: B [out, rank], as far as the outputs are held here; zeros where the parameter has padding.
        scale: the factor.
    """

    site: Site
    a: Tensor
    b: Tensor
    scale: float


def match(config: AdapterConfig, tensors: AdapterTensors, sites: Sites) -> tuple[dict[str, Site], list[str]]:
    """The layers that carry the adapter, by path, and everything that does not fit, one sentence each."""
    problems: list[str] = []
    found = {path: sites.find(path) for path in sorted(sites.matrices | tensors.pairs.keys())}
    named = [path for path, site in found.items() if path in tensors.pairs or isinstance(site, Site) or not site.absent]
    linear = [path for path, site in found.items() if isinstance(site, Site) and not site.is_head]
    chosen = config.targets.select(named, linear=linear, held=tensors.pairs.keys())
    problems += chosen.problems
    matched: dict[str, Site] = {}
    holders: dict[int, str] = {}
    for path in sorted(chosen.paths | tensors.pairs.keys()):
        site, pair = found[path], tensors.pairs.get(path)
        if isinstance(site, Obstacle):
            hint = "" if path in sites.matrices else _closest(path, sites)
            problems.append(f"{_named(path, pair)} {site.reason}.{hint}")
        elif pair is None:
            problems.append(f"{path!r} is a target, but the adapter holds no lora_A and lora_B for it ({site.label}).")
        elif path not in chosen.paths:
            problems.append(f"{_named(path, pair)} is not used: {path!r} is not among the targets.")
        elif (other := holders.setdefault(id(site.part), path)) != path:
            problems.append(f"{other!r} and {path!r} are names of one weight ({site.label}); leave one of them out.")
        else:
            problems += _misfits(config.rank_of(path), pair, site)
            matched[path] = site
    for path, copy in tensors.copies.items():
        if path not in matched:
            problems.append(f"{copy.name!r} in {copy.file} is not used: {path!r} carries no adapter.")
    return matched, problems


def read_updates(
    folder: Path, config: AdapterConfig, tensors: AdapterTensors, matched: dict[str, Site]
) -> tuple[list[Update], list[str]]:
    """Read the matrices of the matched layers, cut to what this process holds, and what is wrong with the numbers."""
    updates: list[Update] = []
    problems: list[str] = []
    for path, site in matched.items():
        pair = tensors.pairs[path]
        a, b = _read(folder, pair.a), _read(folder, pair.b)
        for stored, numbers in ((pair.a, a), (pair.b, b)):
            if not numbers.isfinite().all():
                problems.append(f"{stored.name!r} in {stored.file} holds NaN or infinite numbers. Download it again.")
        if path in tensors.copies and not _is_copy(folder, tensors.copies[path], site):
            copy = tensors.copies[path]
            problems.append(
                f"{copy.name!r} in {copy.file} differs from the checkpoint's weight ({site.label}): the adapter belongs"
                f" to another model, or was trained together with that layer."
            )
        updates.append(_share(site, a, b, config.scale_of(path)))
    return updates, problems


def _misfits(rank: int, pair: Pair, site: Site) -> Iterator[str]:
    out_features, in_features = site.part.shape
    for stored, expected, what in (
        (pair.a, (rank, in_features), "[rank, in]"),
        (pair.b, (out_features, rank), "[out, rank]"),
    ):
        if stored.dtype is not None and stored.dtype not in _FLOATS:
            yield f"{stored.name!r} in {stored.file} holds {stored.dtype}, but an adapter holds floating-point numbers."
        if stored.shape is not None and stored.shape != expected:
            yield (
                f"{stored.name!r} in {stored.file} has shape {list(stored.shape)}, but rank {rank} over {site.label}"
                f" {[out_features, in_features]} needs {what} = {list(expected)}."
            )


def _share(site: Site, a: Tensor, b: Tensor, scale: float) -> Update:
    part = site.part
    if part.dim == 1:
        held = a.new_empty(len(a), part.view.shape[1])
        fill(attrs.evolve(part, view=held), a)
        return Update(site=site, a=held, b=b, scale=scale)
    held = b.new_empty(part.view.shape[0], b.shape[1])
    fill(attrs.evolve(part, view=held), b)
    return Update(site=site, a=a, b=held, scale=scale)


def _is_copy(folder: Path, stored: StoredTensor, site: Site) -> bool:
    """Whether a stored weight gives the numbers that this process holds already."""
    if stored.shape != site.part.shape:
        return False
    view = site.part.view
    held = torch.empty_like(view)
    fill(attrs.evolve(site.part, view=held), _read(folder, stored).to(view.device))
    return torch.equal(held, view)


def _read(folder: Path, stored: StoredTensor) -> Tensor:
    with safe_open(folder / stored.file, framework="pt") as file:
        tensor: Tensor = file.get_tensor(stored.name)
    return tensor


def _named(path: str, pair: Pair | None) -> str:
    """How messages call a layer: by the tensor that is for it, if there is one."""
    return repr(path) if pair is None else f"{pair.a.name!r} in {pair.a.file}"


def _closest(path: str, sites: Sites) -> str:
    near = difflib.get_close_matches(path, sites.matrices, n=1, cutoff=0.8)
    return f" The checkpoint has {near[0]!r}." if near else ""
