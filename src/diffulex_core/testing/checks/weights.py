"""Checks of weight resolvers, on checkpoints that are made up from what the resolver and the network say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from diffulex_core.distributed import Seat
from diffulex_core.errors import CheckpointError, ConfigError
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.checks import placement, projections
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.faults import FAULTS, Fault, corrupt
from diffulex_core.testing.layouts import (
    Layout,
    distinct,
    layouts,
    parts_of,
    plain_layout,
    unknown_names,
)
from diffulex_core.testing.stored import blank, folder_of, load, owner, write
from diffulex_core.testing.subjects import FamilySubject
from diffulex_core.weights import Part, ShardId
from diffulex_core.weights.loader import as_module
from diffulex_core.weights.resolve import Resolution

SIZES = (2, 4)
"""Numbers of processes among which weights are divided, where that is possible."""


@check(FamilySubject, level="recommended")
def check_checkpoint_names_are_known(subject: FamilySubject, effort: Effort) -> None:
    """It can be told which checkpoint tensors fill the network.

    Why: the loader then says which tensor is missing, and the other checks of weights can make up a checkpoint.
    Fix: use `WeightRules`, or give your resolver `sources(target, shard_id)`: the checkpoint names that would fill the
    parameter called `target` (see `diffulex_core.weights.NamesSources`).
    """
    if isinstance(error := unknown_names(subject), str):
        raise CheckFailed(error)


@check(FamilySubject, when=unknown_names)
def check_every_tensor_has_its_place(subject: FamilySubject, effort: Effort) -> None:
    """Every tensor of a checkpoint goes to the one place that it is named for, or is skipped for a stated reason.

    All ways to store the network are tried: part by part, stacked, under other names, and with copies of tied tensors.

    Why: a tensor that is dropped, or that two rules claim, is a network that was never trained.
    Fix: let `resolve_checkpoint_weight` and `sources` tell the same story, with one rule for each tensor.
    """
    for layout in layouts(subject):
        network = as_module(subject.build(device=torch.device("meta")))
        resolution = Resolution.of(network, subject.resolver, subject.config, torch.float32)
        names = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
        for name, place in layout.places.items():
            resolved = resolution(name)
            if resolved is None or resolved.target is None:
                raise CheckFailed(f"stored {layout.name}: {name!r} should fill {place.told}, and is left out.")
            found = names.get(id(resolved.target), "a tensor that the network does not save")
            if found not in place.names or resolved.shard_id != place.shard:
                part = "" if resolved.shard_id is None else f", part {resolved.shard_id!r}"
                raise CheckFailed(
                    f"stored {layout.name}: {name!r} goes to {found}{part}, but is named as what fills {place.told}."
                )


@check(FamilySubject, when=unknown_names)
def check_every_number_is_written(subject: FamilySubject, effort: Effort) -> None:
    """After a load no number of a parameter or buffer is what it was before.

    Why: what no tensor fills keeps whatever stood in memory.
    Fix: let the `parts` of a module cover all of a parameter, and let a `loader` of your own write all of its target.
    """
    for layout in layouts(subject):
        network = blank(subject)
        with folder_of(distinct(layout)) as folder:
            _loaded(subject, folder, layout, network)
        for name, tensor in network.state_dict().items():
            least = None if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min
            untouched = tensor.isnan() if least is None else tensor == least
            if bool(untouched.any()):
                count = f"{int(untouched.sum())} of {tensor.numel()}"
                raise CheckFailed(f"stored {layout.name}: {count} numbers of {name} were not written.")


@check(FamilySubject, when=unknown_names)
def check_numbers_arrive_where_they_belong(subject: FamilySubject, effort: Effort) -> None:
    """A checkpoint of distinct numbers is found again in the network: each tensor in its place, none lost or doubled.

    A tensor that the resolver changes on the way has to keep its numbers apart. Square matrices are not turned where
    all other matrices stay as they are stored.

    Why: swapped, turned or doubled weights load without an error and answer nonsense.
    Fix: look at `shard_id`, `transform` and `loader` of the tensor that is named, and at the views of `parts`.
    """
    turned, kept = list[str](), list[str]()
    for layout in layouts(subject):
        tensors = distinct(layout)
        with folder_of(tensors) as folder:
            network = _loaded(subject, folder, layout)
        parts = parts_of(network)
        for name, tensor in tensors.items():
            place = layout.places[name]
            held = parts[place.names, place.shard].view
            if not place.transformed:
                if not torch.equal(held.to(tensor.dtype), tensor):
                    raise CheckFailed(f"stored {layout.name}: {name!r} is not what {place.told} holds.")
            elif len(held.unique()) != len(tensor.unique()):
                raise CheckFailed(
                    f"stored {layout.name}: {place.told} holds {len(held.unique())} different numbers, where {name!r}"
                    f" has {len(tensor.unique())}."
                )
            if tensor.dim() == 2:
                as_stored = torch.equal(held.to(tensor.dtype), tensor) if held.shape == tensor.shape else False
                kept += [name] if as_stored and tensor.shape[0] != tensor.shape[1] else []
                turned += [name] if held.shape == tensor.T.shape and torch.equal(held, tensor.T) else []
    shapes = {name: place.shape for layout in layouts(subject) for name, place in layout.places.items()}
    if kept and turned and all(shapes[name][0] == shapes[name][1] for name in turned):
        raise CheckFailed(f"{turned[0]!r} is turned because it is square; {kept[0]!r} stays as it is stored.")


@check(FamilySubject, when=unknown_names)
def check_shares_make_up_the_whole(subject: FamilySubject, effort: Effort) -> None:
    """What the processes of a group hold of a tensor is all of it, in the order of the ranks, or each holds it whole.

    Why: a shard that nobody holds, or that two hold where one should, gives another network for each number of
    processes.
    Fix: take the ranges of `parts` from the rank and size of `ctx.tp`. Neighbours may hold the same key/value head;
    what is padded is zero.
    """
    layout = plain_layout(subject)
    with folder_of(distinct(layout)) as folder:
        whole = parts_of(_loaded(subject, folder, layout), smallest=True)
        for size in SIZES:
            shares = _shares(subject, folder, size)
            for (names, shard), part in whole.items() if shares else ():
                held = [share[names, shard].view for share in shares]
                if not _complete(part.view, held):
                    what = names[0] if shard is None else f"{names[0]} (part {shard!r})"
                    raise CheckFailed(
                        f"{what} of shape {list(part.view.shape)} is not what {size} processes hold together, with"
                        f" shapes {[list(each.shape) for each in held]}."
                    )


@check(FamilySubject, when=unknown_names)
def check_files_and_order_do_not_matter(subject: FamilySubject, effort: Effort) -> None:
    """The network is the same however its tensors are spread over files, and in whichever order they stand there.

    Why: published checkpoints are sharded as their authors like.
    Fix: decide by a tensor's name alone; a resolver keeps nothing from one call to the next.
    """
    layout = plain_layout(subject)
    tensors = distinct(layout)
    with TemporaryDirectory() as folder:
        write(Path(folder) / "plain", tensors)
        expected = _loaded(subject, Path(folder) / "plain", layout).state_dict()
        backwards = dict(reversed(tensors.items()))
        for seed, files in ((None, 1), (1, 2), (2, 3), (3, 5)):
            write(Path(folder) / str(files), backwards, files=files, seed=seed, prefix="other")
            for name, tensor in _loaded(subject, Path(folder) / str(files), layout).state_dict().items():
                if not torch.equal(tensor, expected[name]):
                    raise CheckFailed(f"{name} is another one with the tensors in another order over {files} files.")


@check(FamilySubject, when=unknown_names)
def check_damaged_checkpoints_are_refused(subject: FamilySubject, effort: Effort) -> None:
    """A checkpoint with missing, strange, misshapen and damaged tensors is refused, and one error names them all.

    Why: whoever loads a checkpoint of another size, or half a download, must be told, and told everything at once.
    Fix: answer None for names that you do not know, without raising; skip only what you know to be superfluous, by a
    narrow pattern.
    """
    layout = plain_layout(subject)
    for kinds in (FAULTS, *([kind] for kind in FAULTS)):
        with TemporaryDirectory() as folder:
            _check_refusal(subject, corrupt(layout, Path(folder), kinds), Path(folder))


def _check_refusal(subject: FamilySubject, faults: Sequence[Fault], folder: Path) -> None:
    if not faults:
        return
    done = " and ".join(f"{type(fault).__name__.lower()}: {fault.name!r}" for fault in faults)
    try:
        load(subject, folder)
    except CheckpointError as error:
        if owner(subject) not in str(error):
            raise CheckFailed(f"the error does not name the family and its plugin: {error}") from error
        for fault in faults:
            if not any(all(word in problem for word in fault.words) for problem in error.problems):
                raise CheckFailed(f"a checkpoint with {done}: no problem names {fault.words}: {error}") from error
        return
    except Exception as error:
        raise CheckFailed(f"a checkpoint with {done}: {type(error).__name__} instead of a CheckpointError.") from error
    raise CheckFailed(f"a checkpoint with {done} was loaded without an error.")


def _loaded(subject: FamilySubject, folder: Path, layout: Layout, network: nn.Module | None = None) -> nn.Module:
    try:
        made, report = load(subject, folder, network)
    except CheckpointError as error:
        raise CheckFailed(f"a sound checkpoint, stored {layout.name}, was refused: {error}") from error
    if unexplained := [name for name, reason in report.skipped.items() if not reason.strip()]:
        raise CheckFailed(f"{unexplained[0]!r} is skipped without a reason.")
    return made


Held = dict[tuple[tuple[str, ...], ShardId | None], Part]
"""What one process holds of each tensor."""


def _shares(subject: FamilySubject, folder: Path, size: int) -> list[Held]:
    """What each process holds, or nothing when the network cannot be divided among so many."""
    shares = []
    for rank in range(size):
        try:
            network, _ = load(subject, folder, tp=Seat(rank, size))
        except ConfigError:
            return []
        except CheckpointError as error:
            raise CheckFailed(f"a sound checkpoint was refused by rank {rank} of {size}: {error}") from error
        shares.append(dict(parts_of(network, smallest=True)))
    return shares


def _complete(whole: Tensor, shares: Sequence[Tensor]) -> bool:
    """Whether shares are all the whole tensor, or its pieces in order; neighbours may hold the same.

    Behind the last piece there may be zeros.
    """
    if all(share.shape == whole.shape and torch.equal(share, whole) for share in shares):
        return True
    held = [share for share in shares if share.numel()]
    pieces = [share for place, share in enumerate(held) if not place or not _equal(held[place - 1], share)]
    for dim in range(whole.dim()):
        length = whole.shape[dim]
        if len({(*piece.shape[:dim], *piece.shape[dim + 1 :]) for piece in (whole, *pieces)}) > 1:
            continue
        joined = torch.cat(pieces, dim)
        rest = joined.shape[dim] - length
        if rest >= 0 and torch.equal(joined.narrow(dim, 0, length), whole):
            return not bool(joined.narrow(dim, length, rest).any())
    return False


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


CHECKS: tuple[AnyCheck, ...] = (
    check_checkpoint_names_are_known,
    check_every_tensor_has_its_place,
    check_every_number_is_written,
    check_numbers_arrive_where_they_belong,
    check_shares_make_up_the_whole,
    check_files_and_order_do_not_matter,
    check_damaged_checkpoints_are_refused,
    *projections.CHECKS,
    *placement.CHECKS,
)
