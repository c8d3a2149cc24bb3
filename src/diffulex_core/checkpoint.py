"""Reading a checkpoint's JSON files as plain data; nothing from a checkpoint is ever executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffulex_core.errors import CheckpointError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"


def read_json_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json.

    Raises:
        CheckpointError: the folder or the file does not exist, or the file holds no JSON object.
    """
    if not folder.is_dir():
        raise CheckpointError(str(folder), ["There is no such directory. Check the path."])
    if not (folder / CONFIG).is_file():
        hint = f"A checkpoint directory holds {CONFIG}, *.safetensors and a tokenizer; check the path."
        raise CheckpointError(str(folder), [f"{CONFIG} is missing. {hint}"])
    return read_json_object(folder / CONFIG)


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The parsed generation_config.json, empty when there is none.

    Raises:
        CheckpointError: the file holds no JSON object.
    """
    path = folder / GENERATION_CONFIG
    return read_json_object(path) if path.is_file() else {}


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint that holds an object.

    Raises:
        CheckpointError: it holds something else, or cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            str(path.parent), [f"{path.name} cannot be read as JSON ({error}). Download it again."]
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(str(path.parent), [f"{path.name} must hold a JSON object, not {type(content).__name__}."])
    return content
