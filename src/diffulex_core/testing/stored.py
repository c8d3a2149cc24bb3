"""Checkpoint folders that the kit writes, and loading them as engines do."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.testing.forward import META
from diffulex_core.testing.subjects import CPU, FamilySubject
from diffulex_core.weights import LoadReport, load_weights
from diffulex_core.weights.ledger import DTYPES
from diffulex_core.weights.loader import as_module

INDEX = "model.safetensors.index.json"


@contextmanager
def folder_of(tensors: Mapping[str, Tensor], *, files: int = 2) -> Iterator[Path]:
    """A checkpoint folder that is gone on leaving."""
    with TemporaryDirectory() as folder:
        write(Path(folder), tensors, files=files)
        yield Path(folder)


def write(
    folder: Path, tensors: Mapping[str, Tensor], *, files: int = 1, seed: int | None = None, prefix: str = "model"
) -> Mapping[str, str]:
    """Write tensors over some files with an index; a seed shuffles the tensors among and within them.

    Returns:
        The file of each tensor.
    """
    names = list(tensors)
    if seed is not None:
        random.Random(seed).shuffle(names)
    weight_map = {name: f"{prefix}-{place % files}.safetensors" for place, name in enumerate(names)}
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(set(weight_map.values())):
        save_in_order({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def save_in_order(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file with its tensors in the order given; the library sorts them by name."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, data = {}, b""
    for name, tensor in tensors.items():
        held = tensor.contiguous().numpy().tobytes()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(held)],
        }
        data += held
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def blank(subject: FamilySubject, tp: Communicator = ALONE) -> nn.Module:
    """One process's share of the network on the CPU, in which every number is NaN, or the least whole one."""
    network = as_module(subject.build(tp=tp))
    with torch.no_grad():
        for tensor in network.state_dict(keep_vars=True).values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)
    return network


def load(
    subject: FamilySubject, folder: Path, network: nn.Module | None = None, *, tp: Communicator = ALONE
) -> tuple[nn.Module, LoadReport]:
    """A network with the weights of a folder: the given one, or one that is built as engines build it.

    Raises:
        CheckpointError: the loader refuses the folder.
    """
    made = as_module(subject.build(tp=tp, device=META)) if network is None else network
    report = load_weights(
        made,
        subject.resolver,
        folder,
        subject.config,
        dtype=torch.float32,
        device=CPU,
        progress=False,
        owner=owner(subject),
    )
    return made, report


def owner(subject: FamilySubject) -> str:
    """The family and its plugin, as messages name them."""
    return f"the model family '{subject.family.name}' ({subject.provenance.release})"
