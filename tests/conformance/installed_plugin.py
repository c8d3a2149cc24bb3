"""A small sound plugin in a directory of its own, found while a context lasts; mutants replace single files."""

from __future__ import annotations

import importlib
import logging
import os
import random
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from diffulex_core.host import Host
from diffulex_core.testing.reference import plugin as reference
from diffulex_core.testing.subjects import PluginSubject

NAME = "throwaway"
DIST = "diffulex-throwaway"

PLUGIN = """
from diffulex_core.plugin import Capability, Component, DecodingStrategy, ModelFamily, hookimpl

COUNTER, SEEN = list(range(9)), []


@hookimpl
def diffulex_register_models(register):
    register(
        ModelFamily(
            name="throwaway_family", architectures=("ThrowawayForMaskedLM",),
            build="diffulex_throwaway.parts:build", weights="diffulex_throwaway.parts:WEIGHTS",
            tiny="diffulex_throwaway.parts:TINY", provides={Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL},
        )
    )


@hookimpl
def diffulex_register_strategies(register):
    register(
        DecodingStrategy(
            name="throwaway_blocks", pattern="diffulex_throwaway.parts:pattern",
            req="diffulex_throwaway.parts:request", sampler="throwaway_sampler",
            requires={Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL},
            config_cls="diffulex_throwaway.options:Options",
        )
    )


@hookimpl
def diffulex_register_components(register):
    register(Component(kind="sampler", name="throwaway_sampler", factory="diffulex_throwaway.parts:Sampler"))


@hookimpl
def diffulex_validate_config(config):
    return ()


@hookimpl
def diffulex_make_observer(config):
    return None


@hookimpl
def diffulex_add_commands(cli):
    pass
"""

PARTS = """
from diffulex_core.plugin import BlockCausal
from diffulex_core.blocks import BlockRequest, Fill
from diffulex_core.sampling import PackedSampler as Sampler
from diffulex_core.testing.reference.model import TINY as KITS, WEIGHTS, build

TINY = {**KITS, "architectures": ["ThrowawayForMaskedLM"]}

dict = dict


def alone(*, vocab_size, forbidden):
    return Sampler(vocab_size=vocab_size, forbidden=forbidden)


def pattern(block_size):
    return BlockCausal(block_size=block_size)


def request(*, request_id, prompt, params, context):
    rule = Fill(thresholds=params.resolve_thresholds(context.thresholds), force_rule=context.force_rule)
    return BlockRequest(request_id=request_id, prompt=prompt, params=params, context=context, rule=rule)
"""

OPTIONS = """
import attrs

from diffulex_core.plugin import key


@attrs.frozen(kw_only=True)
class Options:
    throwaway_width: int = key(3, "How wide.")
    throwaway_share: float = key(0.5, "What share.")
"""

METADATA = "Metadata-Version: 2.1\nName: diffulex-throwaway\nVersion: 1.0\nRequires-Dist: diffulex-core>=0.1,<0.2\n"

FILES: Mapping[str, str] = {
    "diffulex_throwaway/__init__.py": '__version__ = "1.0"\n',
    "diffulex_throwaway/py.typed": "",
    "diffulex_throwaway/plugin.py": PLUGIN,
    "diffulex_throwaway/parts.py": PARTS,
    "diffulex_throwaway/options.py": OPTIONS,
    "diffulex_throwaway-1.0.dist-info/METADATA": METADATA,
    "diffulex_throwaway-1.0.dist-info/entry_points.txt": f"[diffulex.v1]\n{NAME} = diffulex_throwaway.plugin\n",
    "diffulex_throwaway-1.0.dist-info/RECORD": "",
}


@contextmanager
def installed(changed: Mapping[str, str] | None = None, *, without: str | None = None) -> Iterator[None]:
    """Put the plugin on the path, with some files replaced and one left out, and take every trace of it away after."""
    with TemporaryDirectory() as folder:
        for name, text in {**FILES, **(changed or {})}.items():
            if name != without:
                path = Path(folder) / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
        before, names = _state(), list(sys.path)
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path[:] = names
            importlib.invalidate_caches()
            for name in [name for name in sys.modules if name.partition(".")[0] == "diffulex_throwaway"]:
                del sys.modules[name]
            _restore(*before)


def _state() -> tuple[dict[str, str], torch.dtype, object, int, list[logging.Handler], object]:
    """What mutants change of the process."""
    root = logging.getLogger()
    return (
        dict(os.environ),
        torch.get_default_dtype(),
        signal.getsignal(signal.SIGTERM),
        root.level,
        list(root.handlers),
        random.getstate(),
    )


def _restore(
    environ: dict[str, str],
    dtype: torch.dtype,
    handler: Any,
    level: int,
    handlers: list[logging.Handler],
    state: Any,
) -> None:
    os.environ.clear()
    os.environ.update(environ)
    torch.set_default_dtype(dtype)
    signal.signal(signal.SIGTERM, handler)
    root = logging.getLogger()
    root.setLevel(level)
    root.handlers[:] = handlers
    random.setstate(state)


def subject() -> PluginSubject:
    """The plugin, as the kit finds it."""
    host = Host.discover(extra=[reference])
    record = next(each for each in host.plugins() if each.provenance.plugin == NAME)
    return PluginSubject(host=host, record=record)
