"""Asking a fresh interpreter about a plugin: what discovery and import do where nothing is imported yet."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffulex_core.testing.check import CheckFailed
from diffulex_core.testing.fresh_probe import MARK
from diffulex_core.testing.plugin_parts import parts_of
from diffulex_core.testing.subjects import PluginSubject

INHERITED = ("PATH", "HOME", "USER", "LANG", "LC_", "LD_", "DYLD_", "TMP", "TEMP", "SYSTEM", "VIRTUAL_ENV", "CONDA")
"""Beginnings of the names of variables that a fresh interpreter needs."""
SECONDS = 180
"""How long an interpreter may take, importing torch on a busy machine included."""


def cannot_be_found(subject: PluginSubject) -> str | None:
    """Why another interpreter cannot import the plugin; None where it can."""
    record = subject.record
    if record.status != "loaded":
        return f"it is {record.status}"
    if not record.given:
        return None
    module = sys.modules.get(record.provenance.module)
    spec = None if module is None else module.__spec__
    found = spec is not None and spec.origin is not None
    return None if found else "it was handed over as a module that no other interpreter can import"


@functools.lru_cache(maxsize=8)
def discovered(subject: PluginSubject) -> Mapping[str, Any]:
    """What discovery and the command line do: the packages they import, what they change and print, `descriptors`."""
    return _ask(subject, [])


@functools.lru_cache(maxsize=8)
def imported(subject: PluginSubject, modules: tuple[str, ...]) -> Mapping[str, Sequence[str]]:
    """What importing each module changes. A plugin of observers or commands alone names none."""
    if not modules:
        return {}
    changed: Mapping[str, Sequence[str]] = _ask(subject, list(modules))["imports"]
    return changed


def _ask(subject: PluginSubject, modules: list[str]) -> Mapping[str, Any]:
    origin, probe = subject.record.provenance, importlib.util.find_spec("diffulex_core.testing.fresh_probe")
    assert probe is not None
    assert probe.origin is not None
    question = {
        "plugin": origin.plugin,
        "given": origin.module if subject.record.given else None,
        "modules": modules,
        "options": [part.reference for part in parts_of(subject) if part.field in ("config_cls", "check_config")],
    }
    # What this process has may have been set by the very plugin.
    inherited = {name: value for name, value in os.environ.items() if name.startswith(INHERITED)}
    paths = [str(Path(each).absolute()) for each in sys.path]
    try:
        process = subprocess.run(
            [sys.executable, "-P", probe.origin],
            input=json.dumps(question),
            env=inherited | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(f"a fresh interpreter did not get through discovery and imports in {SECONDS} s.") from error
    printed, mark, answer = process.stdout.rpartition(MARK)
    if not mark:
        raise CheckFailed(f"a fresh interpreter that discovers the plugin ends with:\n{process.stderr[-2000:]}")
    facts: dict[str, Any] = json.loads(answer)
    return facts | {"printed": printed}
