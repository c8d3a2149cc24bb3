"""Run by `fresh.py` in an interpreter of its own: what discovering a plugin, and importing its code, leaves behind.

It reads a question as JSON from standard input and prints the answer as the last line, behind a mark. It stands alone:
importing anything of `diffulex_core.testing` would import torch.
"""

from __future__ import annotations

import ast
import base64
import importlib
import json
import locale
import logging
import os
import pickle
import pkgutil
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

MARK = "\x1e"
HEAVY = ("torch", "transformers", "triton", "tokenizers", "jax", "tensorflow", "pandas", "scipy")


def state() -> dict[str, str]:
    """What of the process code may change without saying so, in words."""
    root = logging.getLogger()
    facts: dict[str, Any] = {
        "environment variables": sorted(os.environ.items()),
        "signal handlers": [(each.name, str(signal.getsignal(each))) for each in signal.Signals],
        "the root logger": (root.level, [type(handler).__name__ for handler in root.handlers]),
        "the level below which logging is off": logging.root.manager.disable,
        "the working directory": str(Path.cwd()),
        "sys.path": sys.path,
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "the state of `random`": random.getstate(),
        "the locale": locale.setlocale(locale.LC_ALL),
        "sys.excepthook": sys.excepthook,
        "the recursion limit": sys.getrecursionlimit(),
    }
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        facts["the state of numpy.random"] = sorted(map(repr, numpy.random.get_state(legacy=False).items()))
        facts["numpy's error handling"] = sorted(numpy.geterr().items())
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        facts |= {
            "torch's default dtype": torch.get_default_dtype(),
            "torch's default device": torch.get_default_device(),
            "the state of torch's generator": hash(bytes(torch.get_rng_state().tolist())),
            "torch's threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
            "torch's gradient mode": torch.is_grad_enabled(),
            "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
            "torch's matmul precision": torch.get_float32_matmul_precision(),
            "whether CUDA is initialised": torch.cuda.is_initialized(),
        }
    return {name: repr(value) for name, value in facts.items()}


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What differs; values that are short are told."""
    found = []
    for name, value in before.items():
        if value != after[name]:
            short = max(len(value), len(after[name])) < 80
            found.append(f"{name} ({value} -> {after[name]})" if short else _longer(name, before, after))
    return found


def _longer(name: str, before: dict[str, str], after: dict[str, str]) -> str:
    if name not in ("environment variables", "sys.path"):
        return name
    old, new = (set(map(repr, ast.literal_eval(facts[name]))) for facts in (before, after))
    added, removed = (", ".join(sorted(each)) or "nothing" for each in (new - old, old - new))
    return f"{name} (added {added}, removed {removed})"


def main() -> None:
    """Answer the question."""
    question = json.load(sys.stdin)
    from diffulex_core.host import Host

    answer: dict[str, Any] = {}
    before = state()
    there = {name for name in HEAVY if name in sys.modules}
    extra = [importlib.import_module(question["given"])] if question["given"] else []
    chosen = [] if question["given"] else [question["plugin"]]
    host = Host.discover(chosen, {}, extra=extra)
    answer["heavy"] = sorted({name for name in HEAVY if name in sys.modules} - there)
    answer["discovery"] = changes(before, state())
    answer["descriptors"] = _descriptors(host, question["plugin"])
    answer["again"] = _descriptors(Host.discover(chosen, {}, extra=extra), question["plugin"])
    if question["modules"]:
        for module in ("numpy", "torch"):
            importlib.import_module(module)
        before = state()
        answer["imports"] = {}
        for module in question["modules"]:
            try:
                importlib.import_module(module)
            except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything
                answer["imports"][module] = [f"raises {type(error).__name__}: {error}"]
            after = state()
            if found := changes(before, after):
                answer["imports"][module] = [
                    *answer["imports"].get(module, []),
                    *(f"changes {what}" for what in found),
                ]
            before = after
    else:
        import click

        for origin, call in host.callers("diffulex_add_commands"):
            if origin.plugin == question["plugin"]:
                call(cli=click.Group())
        answer["command line"] = sorted({name for name in HEAVY if name in sys.modules} - there)
        there |= {*answer["command line"]}
        for reference in question["options"]:
            pkgutil.resolve_name(reference)
        answer["options"] = sorted({name for name in HEAVY if name in sys.modules} - there)
    sys.stdout.write(MARK + json.dumps(answer))


def _descriptors(host: Any, plugin: str) -> dict[str, str]:
    """Pickles of the plugin's descriptors, by kind and name; a reason where one cannot be pickled."""
    found = {}
    for kind, registry in host.registries.items():
        for entry in registry.entries():
            if entry.provenance.plugin == plugin:
                try:
                    text = base64.b64encode(pickle.dumps(entry.descriptor)).decode()
                except Exception as error:  # noqa: BLE001 - a stranger's value may raise anything
                    text = f"! {type(error).__name__}: {error}"
                found[f"{kind} {entry.descriptor.name}"] = text
    return found


if __name__ == "__main__":
    main()
