"""Throw-away distributions on disk, and discovery of them in a fresh interpreter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

import diffulex_core

SOURCES = Path(diffulex_core.__file__).parents[1]

HEADER = """
from diffulex_core.plugin import AttentionBackendPlugin, Component, DecodingStrategy, ModelFamily, hookimpl

def family(name, **fields):
    return ModelFamily(name=name, build="nowhere.net:build", weights="nowhere.net:WEIGHTS", **fields)
"""

REPORT = """
import json, sys
from diffulex_core.cli.plugins import plugin_facts
from diffulex_core.errors import DiffulexError
from diffulex_core.host import Host

question = json.load(sys.stdin)

def answer(kind, name):
    try:
        return host.registries[kind].entry(name).provenance.plugin
    except DiffulexError as error:
        return f"{type(error).__name__}: {error}"

try:
    host = Host.discover(question["plugins"])
except DiffulexError as error:
    json.dump({"error": f"{type(error).__name__}: {error}"}, sys.stdout)
else:
    report = {
        "plugins": [plugin_facts(record) for record in host.plugins()],
        "quarantined": {item.provenance.plugin: f"{item.error}: {item.reason}" for item in host.quarantined},
        "names": {kind: list(registry.names()) for kind, registry in host.registries.items()},
        "manifest": host.manifest(),
        "answers": {name: answer(*name.split("/")) for name in question["ask"]},
        "torch": "torch" in sys.modules,
        "again": host == Host.discover(question["plugins"]),
    }
    json.dump(report, sys.stdout)
"""


@attrs.frozen
class Report:
    """What a discovery in a fresh interpreter found."""

    facts: Mapping[str, Any]

    @property
    def error(self) -> str:
        return str(self.facts["error"])

    def status(self, plugin: str) -> list[str]:
        """The status of every plugin of that name."""
        return [record["status"] for record in self.facts["plugins"] if record["plugin"] == plugin]

    def record(self, plugin: str) -> Mapping[str, Any]:
        record: Mapping[str, Any]
        (record,) = [record for record in self.facts["plugins"] if record["plugin"] == plugin]
        return record

    def quarantine(self, plugin: str) -> str:
        return str(self.facts["quarantined"][plugin])

    def names(self, kind: str) -> list[str]:
        return list(self.facts["names"][kind])

    def answer(self, question: str) -> str:
        """The plugin that provides "kind/name", or the error that asking for it raises."""
        return str(self.facts["answers"][question])


@attrs.frozen
class Site:
    """A directory of installed distributions, put in front of the interpreter's own."""

    path: Path

    def install(
        self, plugin: str, source: str, *, dist: str | None = None, version: str = "1.0", module: str | None = None
    ) -> None:
        """Write a distribution with one module and one entry point.

        Args:
            plugin: name of the entry point.
            source: the module, behind a few imports and the helper `family(name)`.
            dist: name of the distribution; "diffulex-PLUGIN" when None.
            version: its version.
            module: name of the module; derived from the distribution when None.
        """
        dist = dist or f"diffulex-{plugin}"
        module = module or f"{dist.replace('-', '_')}_plugin"
        info = self.path / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (self.path / f"{module}.py").write_text(HEADER + source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[diffulex.v1]\n{plugin} = {module}\n")
        files = [f"{module}.py", *(f"{info.name}/{name}" for name in ("METADATA", "entry_points.txt", "RECORD"))]
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))

    def uninstall(self, dist: str) -> None:
        """Remove every file that the distribution's RECORD names."""
        (info,) = self.path.glob(f"{dist.replace('-', '_')}-*.dist-info")
        for line in (info / "RECORD").read_text().splitlines():
            (self.path / line.split(",")[0]).unlink()
        shutil.rmtree(info)

    def run(
        self, *arguments: str, environ: Mapping[str, str] | None = None, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run the interpreter with this site; `text` is its standard input."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("DIFFULEX_")}
        paths = os.pathsep.join([str(self.path), str(SOURCES)])
        return subprocess.run(
            [sys.executable, *arguments],
            input=text,
            env=inherited | {"PYTHONPATH": paths, "COLUMNS": "120"} | dict(environ or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def discover(
        self, plugins: Sequence[str] | None = None, *, ask: Sequence[str] = (), environ: Mapping[str, str] | None = None
    ) -> Report:
        """Discover in a fresh interpreter.

        Args:
            plugins: the argument of `Host.discover`.
            ask: "kind/name" pairs to look up afterwards.
            environ: environment variables to set.
        """
        question = json.dumps({"plugins": plugins, "ask": list(ask)})
        process = self.run("-c", REPORT, environ=environ, text=question)
        assert process.returncode == 0, process.stderr
        return Report(json.loads(process.stdout))
