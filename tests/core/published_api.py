"""The published API as text, so that a change shows: `python -m tests.core.published_api` writes the file anew."""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from diffulex_core import hookspecs, plugin
from diffulex_core.testing.catalogue import CHECKS

PINNED = Path(__file__).with_name("published_api.txt")
PACKAGES = (
    "diffulex_core.attention",
    "diffulex_core.blocks",
    "diffulex_core.distributed",
    "diffulex_core.layers",
    "diffulex_core.sampling",
    "diffulex_core.sparse",
    "diffulex_core.testing",
    "diffulex_core.testing.fakes",
    "diffulex_core.testing.machines",
    "diffulex_core.testing.oracles",
    "diffulex_core.testing.strategies",
    "diffulex_core.weights",
)
"""Published packages beside `diffulex_core.plugin`, of which the names are pinned."""


def render() -> str:
    """Every published name with its signature, one paragraph each, the names of published packages, and the checks."""
    hooks = {name: value for name, value in vars(hookspecs).items() if name.startswith("diffulex_") and callable(value)}
    parts = [
        f"entry-point group {plugin.ENTRY_POINT_GROUP}",
        *(f"hook {_signature(name, hook)}" for name, hook in sorted(hooks.items())),
        *("\n".join(_described(name, getattr(plugin, name))) for name in sorted(plugin.__all__)),
        *("\n  ".join([f"package {name}", *sorted(_offered(name))]) for name in PACKAGES),
        "\n".join(sorted(f"{each.level} check {each.subject.__name__}.{each.name}, {each.tier}" for each in CHECKS)),
    ]
    return "\n\n".join(parts) + "\n"


def _offered(package: str) -> list[str]:
    names: list[str] = importlib.import_module(package).__all__
    return names


def _described(name: str, value: object) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"function {_signature(name, value)}" if inspect.isfunction(value) else f"{name} = {_assigned(name)}"
        return
    bases = ", ".join(base.__name__ for base in value.__bases__ if base not in (object, typing.Generic))
    yield f"class {name}({bases})" if bases else f"class {name}"
    if issubclass(value, enum.Enum):
        yield from (f"  {member.name} = {member.value!r}" for member in value)
        return
    if attrs.has(value):
        yield from (f"  {_field(field, value)}" for field in attrs.fields(value))
    if issubclass(value, Exception) and "__init__" in vars(value):
        yield f"  {_signature('__init__', value.__init__)}"
    for member, found in sorted(vars(value).items()):
        if member.startswith("_") and not (member == "__call__" and "Protocol" in bases):
            continue
        match found:
            case property():
                yield f"  property {member} -> {_annotation(inspect.signature(found.fget).return_annotation)}"
            case _ if inspect.isfunction(found):
                yield f"  {_signature(member, found)}"
            case str():
                yield f"  {member} = {found!r}"


def _assigned(name: str) -> str:
    """The right side of the assignment that makes a name; `repr` differs from release to release of numpy."""
    for node in ast.parse(inspect.getsource(plugin)).body:
        if isinstance(node, ast.ImportFrom) and any(name == (each.asname or each.name) for each in node.names):
            source = inspect.getsource(importlib.import_module(str(node.module)))
            for made in ast.parse(source).body:
                if isinstance(made, ast.Assign) and ast.unparse(made.targets[0]) == name:
                    return ast.unparse(made.value)
    raise LookupError(f"nothing assigns {name}")


def _field(field: attrs.Attribute[object], owner: type) -> str:
    # As it is written: whoever resolves the types of a class changes what attrs has on record.
    written = next(
        found[field.name] for base in owner.__mro__ if field.name in (found := vars(base)["__annotations__"])
    )
    declared = f"{field.alias}: {_annotation(written)}"
    match field.default:
        case attrs.NOTHING:
            return declared
        case attrs.Factory() as made:
            return f"{declared} = {made.factory.__name__}()"
        case value:
            return f"{declared} = {_plain(value)}"


def _signature(name: str, function: Callable[..., object]) -> str:
    signature = inspect.signature(function)
    given = [
        each.replace(annotation=each.empty if each.annotation is each.empty else _Text(_annotation(each.annotation)))
        for each in signature.parameters.values()
    ]
    back = signature.return_annotation
    shown = str(signature.replace(parameters=given, return_annotation=inspect.Signature.empty))
    return f"{name}{shown}" + ("" if back is inspect.Signature.empty else f" -> {_annotation(back)}")


class _Text:
    """Prints as it is inside a signature."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _annotation(given: object) -> str:
    if isinstance(given, str):
        return given
    return given.__name__ if inspect.isclass(given) and not typing.get_args(given) else _plain(given)


def _plain(value: object) -> str:
    """A value as text that is the same in every process and every release of Python."""
    if isinstance(value, frozenset):
        return f"frozenset({{{', '.join(sorted(map(repr, value)))}}})" if value else "frozenset()"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


if __name__ == "__main__":
    PINNED.write_text(render(), encoding="utf-8")
