"""The hooks that a plugin may implement. Hooks assemble an engine; none is called inside its step loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import pluggy

from diffulex_core.descriptors import AttentionBackendPlugin, Component, DecodingStrategy, ModelFamily

if TYPE_CHECKING:
    import click

    from diffulex_core.config import EngineConfig
    from diffulex_core.observers import Observer

ENTRY_POINT_GROUP = "diffulex.v1"
"""The entry-point group of plugins, and with it the version of the published API: its number changes when the API
changes incompatibly."""

hookspec = pluggy.HookspecMarker("diffulex")

D = TypeVar("D", contravariant=True)


class Register(Protocol[D]):
    """Adds one descriptor to a registry, with the plugin's provenance."""

    def __call__(self, descriptor: D, /) -> None: ...


@hookspec
def diffulex_register_models(register: Register[ModelFamily]) -> None:
    """Called once for each plugin at discovery, before any configuration is read.

    Register descriptors only; torch must not be imported here. Returns nothing.
    """


@hookspec
def diffulex_register_strategies(register: Register[DecodingStrategy]) -> None:
    """Called once for each plugin at discovery, after models. Register descriptors only. Returns nothing."""


@hookspec
def diffulex_register_attention(register: Register[AttentionBackendPlugin]) -> None:
    """Called once for each plugin at discovery, after strategies. Register descriptors only. Returns nothing."""


@hookspec
def diffulex_register_components(register: Register[Component]) -> None:
    """Called once for each plugin at discovery, last of the registrations.

    Components are schedulers, KV caches, runners, samplers, executors, model sources and kernel operations.
    Returns nothing.
    """


@hookspec
def diffulex_validate_config(config: EngineConfig) -> Sequence[str]:
    """Called when a configuration was resolved, before anything is loaded.

    Returns one sentence for each problem, naming key, value and fix; the problems of all plugins are reported in one
    error. An empty sequence means no objection.
    """
    return ()


@hookspec
def diffulex_config_tables() -> Mapping[str, str]:
    """Called when a config file is read: which of its tables are for the plugin's own commands, and not for an engine.

    Returns for each name of a table a reference to the attrs class of its keys, as in
    `{"serve": "diffulex_serve.options:ServeOptions"}`. Its fields are keys, or attrs classes of keys.
    """
    return {}


@hookspec
def diffulex_make_observer(config: EngineConfig) -> Observer | None:
    """Called once when an engine is assembled. Returns an observer of its steps and requests, or None."""


@hookspec
def diffulex_add_commands(cli: click.Group) -> None:
    """Called once when the command line starts. Add commands or groups to `cli`; import heavy code inside commands."""
