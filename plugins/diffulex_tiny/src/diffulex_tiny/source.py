"""Resolves `tiny/NAME` to a checkpoint that ships inside this package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from diffulex_core.plugin import CheckpointError

PREFIX = "tiny/"


class TinySource:
    """Model source of the checkpoints trained by this project."""

    def resolve(self, name: str) -> Path | None:
        """Folder of the checkpoint `tiny/NAME`; None for names of other sources.

        Raises:
            CheckpointError: there is no checkpoint of that name; the message lists those that exist.
        """
        if not name.startswith(PREFIX):
            return None
        folder = Path(str(files("diffulex_tiny"))) / "checkpoints"
        wanted, known = name.removeprefix(PREFIX), names()
        if wanted not in known:
            listed = ", ".join(PREFIX + each for each in known) or "none"
            raise CheckpointError(name, [f"There is no embedded checkpoint {name!r}. Those that exist: {listed}."])
        return folder / wanted


def names() -> list[str]:
    """Names of the embedded checkpoints, sorted."""
    folder = files("diffulex_tiny") / "checkpoints"
    return sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
