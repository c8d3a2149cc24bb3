"""The tensors of an adapter: which layers they belong to, and those that are no plain LoRA."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import attrs

from diffulex_core.weights.files import StoredTensor, take_inventory

STEM = "adapter_model"
"""Name of the file without suffix."""

_PREFIX = "base_model.model."
_MATRIX = re.compile(r"(?P<path>.+?)\.lora_(?P<side>[AB])(?:\.default)?(?:\.weight)?")
_COPY = re.compile(r"(?P<path>.+?)\.base_layer\.weight")
_OTHERS: Mapping[str, str] = MappingProxyType({
    r"lora_embedding_[AB]": "adapts an embedding, which is not supported",
    r"lora_magnitude_vector": "belongs to DoRA, which is not supported",
    r"lora_[AB](?:\.default)?\.bias": "is a bias of an adapter, which is not supported",
    r"lora_[AB]\.\w+": "belongs to an adapter of another name than 'default'",
    r"modules_to_save": "is a whole module trained beside the adapter, which is not loaded",
})  # fmt: skip


@attrs.frozen(kw_only=True)
class Pair:
    """The two matrices of one layer: `ΔW = scale · B A`.

    Attributes:
        a: A, [rank, in].
        b: B, [out, rank].
    """

    a: StoredTensor
    b: StoredTensor


@attrs.frozen(kw_only=True)
class AdapterTensors:
    """What the adapter's files hold.

    Attributes:
        pairs: by the layer's path in the checkpoint.
        copies: weights of the base model that peft stored along with the adapter, by the layer's path.
        problems: everything that is wrong, one sentence each.
    """

    pairs: Mapping[str, Pair]
    copies: Mapping[str, StoredTensor]
    problems: Sequence[str]


def list_tensors(folder: Path) -> AdapterTensors:
    """Read the headers of `adapter_model.safetensors`, or of the files that its index names."""
    inventory = take_inventory(folder, STEM)
    problems = list(inventory.problems)
    sides: dict[str, dict[str, StoredTensor]] = {}
    copies: dict[str, StoredTensor] = {}
    for tensor in inventory.tensors:
        name = tensor.name.removeprefix(_PREFIX)
        if found := _MATRIX.fullmatch(name):
            held = sides.setdefault(found["path"], {})
            rival = held.setdefault(found["side"], tensor)
            if rival is not tensor:
                problems.append(f"{rival.name!r} and {tensor.name!r} in {tensor.file} are the same matrix; remove one.")
        elif found := _COPY.fullmatch(name):
            copies[found["path"]] = tensor
        else:
            problems.append(f"{tensor.name!r} in {tensor.file} {_why_not(name)}.")
    for held in sides.values():
        for side, other in (("A", "B"), ("B", "A")):
            if side in held and other not in held:
                problems.append(f"{held[side].name!r} in {held[side].file} comes without its lora_{other}.")
    pairs = {path: Pair(a=held["A"], b=held["B"]) for path, held in sides.items() if len(held) == 2}
    return AdapterTensors(pairs=pairs, copies=copies, problems=problems)


def _why_not(name: str) -> str:
    # From the end: a layer of any name may carry the tensor.
    found = (reason for pattern, reason in _OTHERS.items() if re.search(rf"\.{pattern}(?:\.|$)", name))
    return next(found, "is no part of a LoRA adapter over a linear layer")
