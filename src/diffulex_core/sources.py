"""Where a model's or an adapter's files come from: a directory, a plugin's package data, or the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from diffulex_core.descriptors import Component
from diffulex_core.errors import CheckpointError
from diffulex_core.host import Host
from diffulex_core.protocols import ModelSource
from diffulex_core.registry import Entry

LAST_RESORT = "hub"
"""Asked after all others, because it may use the network."""

_ADVICE = (
    "Give the path of a directory that holds config.json and weights, a repository of the Hugging Face hub as "
    "owner/name, or a name that one of these sources brings."
)


class DirectorySource:
    """A directory on this machine, given by its path."""

    def resolve(self, name: str) -> Path | None:
        """See `ModelSource`. What can only be a path must exist."""
        try:
            path = Path(name).expanduser()
            if path.is_dir():
                return path
        except (OSError, RuntimeError) as error:  # too long, or of a user who is not there
            raise CheckpointError(name, [f"It is not the path of a directory: {error}."]) from error
        if path.exists():
            raise CheckpointError(name, ["It is a file. Give the directory that holds it."])
        if path.is_absolute() or name.startswith((".", "~")) or name.endswith("/") or name.count("/") > 1:
            raise CheckpointError(name, [f"There is no directory {str(path.absolute())!r}. Check the path."])
        return None


class HubSource:
    """A repository on the Hugging Face hub, `owner/name`: the local cache first, then the network.

    Only weights and JSON files are fetched, never code.
    """

    patterns = ("*.safetensors", "*.json", "*.jinja", "merges.txt")
    descriptions = ("config.json", "adapter_config.json")

    def resolve(self, name: str) -> Path | None:
        """See `ModelSource`."""
        if name.count("/") != 1 or name.endswith("/"):
            return None
        return self._cached(name) or self._download(name)

    def _cached(self, name: str) -> Path | None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(name, allow_patterns=list(self.patterns), local_files_only=True))
        except LocalEntryNotFoundError:
            return None
        except HFValidationError as error:
            raise CheckpointError(name, [f"It is not a valid hub id: {error}"]) from error
        described = any((folder / name).is_file() for name in self.descriptions)
        complete = described and any(folder.glob("*.safetensors"))
        return folder if complete else None

    def _download(self, name: str) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(name, allow_patterns=list(self.patterns)))
        except LocalEntryNotFoundError as error:
            advice = "Connect to a network, unset HF_HUB_OFFLINE, or give a directory."
            raise CheckpointError(
                name, [f"It is not in the local cache and the hub is out of reach. {advice}"]
            ) from error
        except HfHubHTTPError as error:
            reason = str(error).strip().splitlines()[0]
            advice = "Check the name; for a gated or private repository log in with `hf auth login`."
            raise CheckpointError(name, [f"The hub refused ({type(error).__name__}: {reason}). {advice}"]) from error
        except OSError as error:
            raise CheckpointError(name, [f"The download failed ({type(error).__name__}: {error})."]) from error


def resolve_model(name: str | os.PathLike[str], host: Host) -> Path:
    """The directory of a model: asks the registered sources in turn, directories first and the hub last.

    Raises:
        CheckpointError: no source has it, or the one that knows the name cannot deliver; lists what each one said.
    """
    name = os.fspath(name)
    registered = host.components["model_source"].entries()
    said: list[str] = []
    for entry in sorted(registered, key=lambda entry: entry.descriptor.name == LAST_RESORT):
        try:
            found = _load(host, entry).resolve(name)
        except CheckpointError as error:
            said += [f"{entry.descriptor.name}: {problem}" for problem in error.problems]
            raise CheckpointError(name, said) from error
        if found is not None:
            return found
        said.append(f"{entry.descriptor.name}: it knows no model of this name.")
    raise CheckpointError(name, [*said, _ADVICE] if said else ["No plugin provides a model source."])


def _load(host: Host, entry: Entry[Component]) -> ModelSource:
    source: ModelSource = host.load(entry.descriptor.factory, provenance=entry.provenance)()
    return source
