"""What must hold of every family's weights, W1 to W7; each check raises AssertionError.

They take a family and one layout of its checkpoint, and write that layout filled with distinct whole numbers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from diffulex_core.distributed import Seat
from diffulex_core.errors import CheckpointError, ConfigError
from diffulex_core.testing.writes import Writes
from diffulex_core.weights import LoadReport
from diffulex_core.weights.resolve import Resolution
from tests.families.faults import FAULTS, Fault, corrupt
from tests.families.layouts import Layout, distinct, parts_of, write
from tests.families.subjects import Subject

SIZES = (2, 4)
"""Numbers of processes among which weights are divided; the first must be possible for every small config.json."""


@attrs.frozen(eq=False)
class Case:
    """A family's config.json and a way to store its weights."""

    subject: Subject
    layout: Layout

    def written(self, folder: Path) -> dict[str, Tensor]:
        """The layout's tensors, written into `folder` over three files."""
        tensors = distinct(self.layout)
        write(folder, tensors, files=3)
        return tensors

    def load(self, network: nn.Module, folder: Path) -> LoadReport:
        """Load a sound checkpoint."""
        subject = self.subject
        try:
            return subject.load(network, subject.resolver, folder, subject.config, subject.owner)
        except CheckpointError as error:
            raise AssertionError(f"a sound checkpoint was refused: {error}") from error

    def __str__(self) -> str:
        return f"{self.subject}, {self.layout}"


def w1_every_tensor_is_claimed_once_or_skipped_with_a_reason(case: Case, folder: Path) -> None:
    tensors = case.written(folder)
    network = case.subject.network()
    resolution = Resolution.of(network, case.subject.resolver, case.subject.config, torch.float32)
    names = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
    claimed: dict[tuple[int, object], str] = {}
    skipped = copies = 0
    for name in tensors:
        resolved, place = resolution(name), case.layout.places[name]
        assert resolved is not None, f"nobody knows {name}"
        if resolved.skip is not None:
            skipped += 1
            continue
        assert names[id(resolved.target)] in place.names, f"{name} goes to another parameter than it is named for"
        assert resolved.shard_id == place.shard, f"{name} goes to another part than it is named for"
        first = claimed.setdefault((id(resolved.target), resolved.shard_id), name)
        allowed = any({first, name} <= set(group) for group in case.layout.copies())
        assert first == name or allowed, f"{first} and {name} are claimed for one place"
        copies += first != name
    report = case.load(case.subject.network(), folder)
    assert report.tensors == len(tensors) - skipped - copies
    assert len(report.skipped) == skipped
    assert all(report.skipped.values())


def w2_every_element_is_written(case: Case, folder: Path) -> None:
    case.written(folder)
    network = case.subject.network(device="cpu")
    case.load(network, folder)
    for name, tensor in network.state_dict().items():
        least = None if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min
        untouched = tensor.isnan() if least is None else tensor == least
        assert not untouched.any(), f"{int(untouched.sum())} numbers of {name} were not written"


def w3_no_element_is_written_twice(case: Case, folder: Path) -> None:
    case.written(folder)
    network = case.subject.network(device="cpu")
    with Writes(network) as writes:
        case.load(network, folder)
    for name, count in writes.counts.items():
        assert int(count.max()) <= 1, f"{int((count > 1).sum())} numbers of {name} were written more than once"
        assert int(count.min()) >= 1, f"{int((count < 1).sum())} numbers of {name} were not written"


def w4_the_numbers_of_the_checkpoint_are_those_of_the_network(case: Case, folder: Path) -> None:
    tensors = case.written(folder)
    network = case.subject.network()
    case.load(network, folder)
    copies = {name for names in case.layout.copies() for name in names[1:]}
    stored = torch.cat([tensor.flatten() for name, tensor in tensors.items() if name not in copies])
    held = {id(tensor): tensor for tensor in network.state_dict(keep_vars=True).values()}
    loaded = torch.cat([tensor.detach().flatten().to(stored.dtype) for tensor in held.values()])
    assert torch.equal(loaded.sort().values, stored.sort().values), "numbers were lost or doubled"
    parts = parts_of(network)
    for name, tensor in tensors.items():
        place = case.layout.places[name]
        part = parts[place.names, place.shard]
        if place.transformed:
            assert torch.equal(part.flatten().sort().values, tensor.flatten().sort().values), f"{name} is not in place"
        else:
            assert torch.equal(part.to(tensor.dtype), tensor), f"{name} is not in its place as it was stored"


def w5_shares_put_together_are_the_whole(case: Case, folder: Path) -> None:
    case.written(folder)
    alone = case.subject.network()
    case.load(alone, folder)
    whole = parts_of(alone, smallest=True)
    for size in SIZES:
        networks = _shares(case, folder, size)
        if networks is None:
            assert size != SIZES[0], "the small config.json cannot be divided among two processes"
            continue
        shares = [parts_of(network, smallest=True) for network in networks]
        for key, tensor in whole.items():
            _check_shares(str(key), tensor, [share[key] for share in shares])


def w6_files_and_order_do_not_matter(case: Case, folder: Path) -> None:
    tensors = case.written(folder / "plain")
    expected = case.subject.network()
    case.load(expected, folder / "plain")
    for seed, files in ((1, 1), (2, 2), (3, 5)):
        other = folder / f"{files}"
        write(other, tensors, files=files, seed=seed, prefix=f"layer-{seed}-ep-0-of")
        strangers = {name: tensor + 0.5 for name, tensor in tensors.items()}
        write(other / "strangers", {**strangers, "stranger": torch.zeros(1)}, prefix="aa")
        for file in ("aa-0.safetensors", "model.safetensors", "zz.safetensors"):
            shutil.copy(other / "strangers" / "aa-0.safetensors", other / file)
        (other / "broken.safetensors").write_bytes(b"not a safetensors file")
        network = case.subject.network()
        case.load(network, other)
        for (name, theirs), ours in zip(expected.state_dict().items(), network.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), f"{name} depends on files or order"


def w7_a_corrupt_checkpoint_is_one_error_that_names_everything(case: Case, folder: Path) -> None:
    check_faults(case, folder / "corrupt", FAULTS)


CHECKS: Mapping[str, Callable[[Case, Path], None]] = {
    "W1": w1_every_tensor_is_claimed_once_or_skipped_with_a_reason,
    "W2": w2_every_element_is_written,
    "W3": w3_no_element_is_written_twice,
    "W4": w4_the_numbers_of_the_checkpoint_are_those_of_the_network,
    "W5": w5_shares_put_together_are_the_whole,
    "W6": w6_files_and_order_do_not_matter,
    "W7": w7_a_corrupt_checkpoint_is_one_error_that_names_everything,
}


def _shares(case: Case, folder: Path, size: int) -> list[nn.Module] | None:
    """The network's shares, or None when it cannot be divided among so many."""
    networks = []
    for rank in range(size):
        try:
            network = case.subject.network(Seat(rank, size))
        except ConfigError:
            return None
        case.load(network, folder)
        networks.append(network)
    return networks


def _check_shares(name: str, whole: Tensor, shares: Sequence[Tensor]) -> None:
    """The shares are all the whole tensor, or its pieces in the order of the ranks; neighbours may hold the same.

    Behind the last piece there may be zeros.
    """
    if all(share.shape == whole.shape and torch.equal(share, whole) for share in shares):
        return
    held = [share for share in shares if share.numel()]
    pieces = [share for place, share in enumerate(held) if not place or not _equal(held[place - 1], share)]
    for dim in range(whole.dim()):
        joined = torch.cat(pieces, dim) if len({_without(piece.shape, dim) for piece in pieces}) == 1 else None
        if joined is None or _without(joined.shape, dim) != _without(whole.shape, dim):
            continue
        length = whole.shape[dim]
        if joined.shape[dim] >= length and torch.equal(joined.narrow(dim, 0, length), whole):
            assert not joined.narrow(dim, length, joined.shape[dim] - length).any(), f"{name} is not padded with zeros"
            return
    raise AssertionError(f"the shares of {name} put together are not the whole")


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _without(shape: Sequence[int], dim: int) -> tuple[int, ...]:
    return (*shape[:dim], *shape[dim + 1 :])


def check_faults(case: Case, folder: Path, faults: Sequence[type[Fault]]) -> None:
    """One error tells each fault of a checkpoint once, in a sentence that names all that is known, and nothing else."""
    subject = case.subject
    done = corrupt(case.layout, folder, faults)
    problems, text = _refusal(subject, folder)
    if problems:
        assert subject.owner in text, f"the plugin is not named: {text}"
    for fault in done:
        telling = [problem for problem in problems if all(word in problem for word in fault.words)]
        assert len(telling) == 1, f"{type(fault).__name__} of {fault.name} is told {len(telling)} times: {text}"
    assert len(problems) == len(done), f"there are {len(done)} faults, but: {text}"


def _refusal(subject: Subject, folder: Path) -> tuple[Sequence[str], str]:
    """The problems that loading reports, and the whole message; nothing when it accepts the checkpoint."""
    try:
        subject.load(subject.network(), subject.resolver, folder, subject.config, subject.owner)
    except CheckpointError as error:
        return error.problems, str(error)
    return (), ""
