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
from diffulex_core.plugin import PluginError

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
        plugins: names of the plugins to use; None = all that are installed.
        manifest: plugin, distribution and version of everything that must be found; None = whatever there is.
    """

    model: str | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict)
    texts: Mapping[str, str] = attrs.field(factory=dict)
    config_file: ConfigFile | None = None
    plugins: tuple[str, ...] | None = None
    manifest: Manifest | None = None

    def load(self, host: Host | None = None) -> LoadedConfig:
        """Resolve the configuration and read the tokenizer; needs neither torch nor the weights.

        Raises:
            ConfigError, CheckpointError, UnknownNameError: as for `Diffulex`.
        """
        host = host or Host.discover(self.plugins)
        return load_config(
            self.model, self._options(), host=host, config_file=self.config_file, environ=_environ(), strict=True
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
            **self._options(),
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
                "plugins": self.plugins,
                "manifest": self.manifest,
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
            plugins=None if plugins is None else tuple(plugins),
            manifest=None if manifest is None else tuple((name, dist, version) for name, dist, version in manifest),
        )

    def _options(self) -> dict[str, Any]:
        return {**self.options, **{name: Text(text) for name, text in self.texts.items()}}


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)}
