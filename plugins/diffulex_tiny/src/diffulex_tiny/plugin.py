"""Registers the model source that makes `Diffulex("tiny/llada")` work."""

from __future__ import annotations

from diffulex_core.plugin import Component, Register, hookimpl


@hookimpl
def diffulex_register_components(register: Register[Component]) -> None:
    register(Component(kind="model_source", name="tiny", factory="diffulex_tiny.source:TinySource"))
