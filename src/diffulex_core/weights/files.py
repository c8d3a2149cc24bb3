"""Which safetensors files make up a checkpoint and which tensors they hold, read from the headers alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
from safetensors import SafetensorError, safe_open

MODEL = "model"
"""Stem of a checkpoint's files: `model.safetensors`, or `model.safetensors.index.json` and the files it names."""


@attrs.frozen(kw_only=True)
class StoredTensor:
    """One tensor of a checkpoint.

    Attributes:
        name: its name there.
        file: name of the file that holds it.
        shape, dtype: as stored ("F32", "BF16" ...); None when the file's header cannot be read.
    """

    name: str
    file: str
    shape: tuple[int, ...] | None
    dtype: str | None

    @property
    def where(self) -> str:
        """How messages call it."""
        return f"{self.name!r} in {self.file}"


@attrs.frozen(kw_only=True)
class Inventory:
    """What a checkpoint folder holds.

    Attributes:
        files: the safetensors files that belong to it, sorted.
        tensors: by file, then by name.
        problems: everything that is wrong with the files.
        complete: whether `tensors` names all tensors, so that others are known to be missing.
    """

    files: tuple[str, ...]
    tensors: tuple[StoredTensor, ...]
    problems: tuple[str, ...]
    complete: bool


def take_inventory(folder: Path, stem: str = MODEL) -> Inventory:
    """List a checkpoint's tensors: from the index if there is one, else `model.safetensors`, else all `*.safetensors`.

    With an index, other files in the folder are ignored. Another `stem` (an adapter's) stands for files of that name
    only.
    """
    problems: list[str] = []
    index_name = f"{stem}.safetensors.index.json"
    index = _read_index(folder / index_name, problems)
    files = sorted(set(index.values())) if index is not None else _files_without_index(folder, stem)
    if not files and not problems:
        problems.append(_no_files(folder, stem, index_found=(folder / index_name).exists()))
    tensors: list[StoredTensor] = []
    readable = 0
    for file in files:
        found, problem = _read_header(folder, file)
        named = sorted(name for name, holder in (index or {}).items() if holder == file)
        if problem:
            problems.append(f"{problem}{_and_thus(named)} Download it again.")
            found = [_unread(name, file) for name in named]
        else:
            readable += 1
            lost = sorted(set(named) - {tensor.name for tensor in found})
            problems += [f"{index_name} says that {file} holds {name!r}, but it does not." for name in lost]
            found += [_unread(name, file) for name in lost]
        tensors += found
    return Inventory(
        files=tuple(files),
        tensors=tuple(_without_duplicates(tensors, problems)),
        problems=tuple(problems),
        complete=bool(files) and (index is not None or readable == len(files)),
    )


def _read_index(path: Path, problems: list[str]) -> Mapping[str, str] | None:
    """tensor name -> file name; None without an index, empty when it cannot be used."""
    if not path.exists():
        return None
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(file, str) and _is_plain(file) for file in weight_map.values()):
            raise ValueError("'weight_map' must map tensor names to names of .safetensors files, without folders")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problems.append(f"{path.name} is not a valid index ({type(error).__name__}: {error}). Download it again.")
        return {}
    return dict(weight_map)


def _is_plain(file: str) -> bool:
    """Whether it names a safetensors file of the folder."""
    return Path(file).name == file and file.endswith(".safetensors")


def _files_without_index(folder: Path, stem: str) -> list[str]:
    if (folder / f"{stem}.safetensors").exists():
        return [f"{stem}.safetensors"]
    return sorted(path.name for path in folder.glob("*.safetensors")) if stem == MODEL else []


def _no_files(folder: Path, stem: str, *, index_found: bool) -> str:
    if index_found:
        return f"{stem}.safetensors.index.json names no files."
    others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern))
    hint = f" {', '.join(others)} cannot be read; convert them to safetensors." if others else ""
    names = [f"{stem}.safetensors.index.json", f"{stem}.safetensors", *(["*.safetensors"] if stem == MODEL else [])]
    return f"There are no weights: looked for {', '.join(names[:-1])} and {names[-1]}.{hint}"


def _read_header(folder: Path, file: str) -> tuple[list[StoredTensor], str]:
    """The tensors of one file sorted by name, and what is wrong with it."""
    path = folder / file
    if not path.is_file():
        return [], f"{file} is missing"
    try:
        with safe_open(path, framework="pt") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
            return [
                StoredTensor(name=name, file=file, shape=tuple(part.get_shape()), dtype=part.get_dtype())
                for name, part in sorted(slices.items())
            ], ""
    except (SafetensorError, OSError) as error:
        return [], f"{file} is damaged or cut off ({path.stat().st_size} bytes: {error})"


def _and_thus(lost: Sequence[str]) -> str:
    """The end of the sentence about a file that cannot be read."""
    if not lost:
        return "."
    rest = f" and {len(lost) - 3} others" if len(lost) > 3 else ""
    return f", and with it {', '.join(map(repr, lost[:3]))}{rest}."


def _unread(name: str, file: str) -> StoredTensor:
    return StoredTensor(name=name, file=file, shape=None, dtype=None)


def _without_duplicates(tensors: list[StoredTensor], problems: list[str]) -> list[StoredTensor]:
    first: dict[str, StoredTensor] = {}
    for tensor in tensors:
        holder = first.setdefault(tensor.name, tensor)
        if holder is not tensor:
            problems.append(f"{tensor.name!r} is stored twice, in {holder.file} and in {tensor.file}.")
    return list(first.values())
