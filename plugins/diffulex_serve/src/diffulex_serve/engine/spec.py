"""Which engine to open: plain data that a new process can read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from diffulex_core.config import ConfigFile, Text
from diffulex_core.config.load import LoadedConfig, load_config
from diffulex_core.host import Host
from diffulex_core.plugin import ConfigError, PluginError

if TYPE_CHECKING:
    from diffulex_core.engine import Diffulex

Manifest = tuple[tuple[str, str, str], ...]

OWN_VARIABLES = "DIFFULEX_SERVE__"
"""Environment variables of the server's own keys, which no engine knows."""


@attrs.frozen(kw_only=True)
class EngineSpec:
    """The arguments of `Diffulex`.

    Attributes:
        model: directory or name; None = as file or environment say.
        options: configuration keys.
        texts: configuration keys as they were typed.
        config_file: parsed file with further keys, those of the server left out.
        given_by: who gave model, options and texts, for messages.
        plugins: names of the plugins to use; None = all that are installed.
        manifest: plugin, distribution and version of everything that must be found; None = whatever there is.
        replica: which of the copies that `data_parallel_size` asks for this engine is to be; None = all of them.
    """

    model: str | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict)
    texts: Mapping[str, str] = attrs.field(factory=dict)
    config_file: ConfigFile | None = None
    given_by: str = "the caller"
    plugins: tuple[str, ...] | None = None
    manifest: Manifest | None = None
    replica: int | None = None

    def load(self, host: Host | None = None) -> LoadedConfig:
        """Resolve the configuration and read the tokenizer; needs neither torch nor the weights.

        Raises:
            ConfigError, CheckpointError, UnknownNameError: as for `Diffulex`.
        """
        host = host or Host.discover(self.plugins)
        return load_config(
            self.model,
            self._options(),
            host=host,
            config_file=self.config_file,
            environ=_environ(),
            strict=True,
            given_by=self.given_by,
        )

    def open(self) -> Diffulex:
        """Load the model.

        Raises:
            ConfigError, CheckpointError, UnknownNameError: as for `Diffulex`.
            PluginError: other plugins are installed than `manifest` says.
        """
        from diffulex_core.engine import Diffulex

        host = Host.discover(self.plugins)
        if self.manifest is not None and host.manifest() != self.manifest:
            different = sorted(set(host.manifest()) ^ set(self.manifest))
            raise PluginError(
                f"The engine's process finds other plugins than the server's: {different}. Install the same packages "
                "for both, and restart."
            )
        return Diffulex(
            self.model,
            host=host,
            config_file=self.config_file,
            environ=_environ(),
            strict=True,
            given_by=self.given_by,
            **(self._options() | self._of_replica(host)),
        )

    def to_json(self) -> str:
        """The value as text, for `from_json` in another process."""
        file = None if self.config_file is None else [self.config_file.name, dict(self.config_file.values)]
        return json.dumps(
            {
                "model": self.model,
                "options": dict(self.options),
                "texts": dict(self.texts),
                "config_file": file,
                "given_by": self.given_by,
                "plugins": self.plugins,
                "manifest": self.manifest,
                "replica": self.replica,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> EngineSpec:
        """What `to_json` wrote."""
        data = json.loads(text)
        file, plugins, manifest = data["config_file"], data["plugins"], data["manifest"]
        return cls(
            model=data["model"],
            options=data["options"],
            texts=data["texts"],
            config_file=None if file is None else ConfigFile(name=file[0], values=file[1]),
            given_by=data["given_by"],
            plugins=None if plugins is None else tuple(plugins),
            manifest=None if manifest is None else tuple((name, dist, version) for name, dist, version in manifest),
            replica=data["replica"],
        )

    def _options(self) -> dict[str, Any]:
        return {**self.options, **{name: Text(text) for name, text in self.texts.items()}}

    def _of_replica(self, host: Host) -> dict[str, Any]:
        """The keys in which this replica differs from all of them: its devices, and where its processes meet."""
        if self.replica is None:
            return {}
        import torch

        parallel = self.load(host).config.parallel
        ranks, first = parallel.tensor_parallel_size, self.replica * parallel.tensor_parallel_size
        keys: dict[str, Any] = {"data_parallel_size": 1}
        if parallel.master_port:
            keys["master_port"] = parallel.master_port + self.replica
        if parallel.device in ("auto", "cuda") and (parallel.device_ids or torch.cuda.is_available()):
            devices = parallel.device_ids or tuple(range(torch.cuda.device_count()))
            keys["device_ids"] = devices[first : first + ranks]
            if len(keys["device_ids"]) < ranks:
                sizes = f"data_parallel_size {parallel.data_parallel_size} and tensor_parallel_size {ranks}"
                there = f"{sizes} need more than the {len(devices)} CUDA devices that there are"
                raise ConfigError([f"{there}. Lower one of the two, or use device='cpu'."])
        return keys


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)}
