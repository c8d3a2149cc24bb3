"""The one cattrs converter: given values become the types of their keys, strictly; configurations become plain data."""

from __future__ import annotations

import json
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, get_args, get_origin

import attrs
import cattrs
from frozendict import frozendict

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_NULL = frozenset({"null", "none", "~", ""})


@attrs.frozen
class Text:
    """A value given as text, on the command line or in the environment; it is read as the type of its key."""

    text: str


def shown(value: object) -> str:
    """A given value as messages quote it: a text as itself, wherever it was typed."""
    return repr(value.text if isinstance(value, Text) else value)


class ConversionError(ValueError):
    """A value is not of its key's type; the message says what to give."""


def convert(value: object, kind: Any) -> Any:
    """`value` as the type `kind`.

    Raises:
        ConversionError: it is of another type.
    """
    if isinstance(value, Text) and is_optional(kind) and value.text.strip().lower() in _NULL:
        return None
    return CONVERTER.structure(value, kind)


def is_optional(kind: Any) -> bool:
    """Whether None is a value of the type."""
    return get_origin(kind) in (typing.Union, types.UnionType) and type(None) in get_args(kind)


def as_mapping(value: object) -> Mapping[str, object] | None:
    """The entries of a group given as a mapping, an attrs instance or a text that holds a JSON object; else None."""
    if isinstance(value, Text):
        try:
            value = json.loads(value.text)
        except ValueError:
            return None
    if isinstance(value, Mapping):
        return value
    if attrs.has(type(value)):
        return attrs.asdict(typing.cast(attrs.AttrsInstance, value), recurse=False)
    return None


def choices_of(kind: Any) -> tuple[object, ...]:
    """The values that the type itself lists (a Literal, also an optional one)."""
    if _is_literal(kind):
        return get_args(kind)
    if is_optional(kind):
        return tuple(choice for part in get_args(kind) for choice in choices_of(part))
    return ()


def _integer(value: object, _: Any) -> int:
    if isinstance(value, Text):
        try:
            return int(value.text)
        except ValueError:
            raise ConversionError("give a whole number") from None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ConversionError("give a whole number")


def _number(value: object, _: Any) -> float:
    if isinstance(value, Text):
        try:
            return float(value.text)
        except ValueError:
            raise ConversionError("give a number") from None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise ConversionError("give a number")


def _flag(value: object, _: Any) -> bool:
    if isinstance(value, Text):
        word = value.text.strip().lower()
        value = True if word in _TRUE else False if word in _FALSE else word
    if isinstance(value, bool):
        return value
    raise ConversionError("give true or false")


def _text(value: object, _: Any) -> str:
    if isinstance(value, Text):
        return value.text
    if isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    raise ConversionError("give a text")


def _literal(value: object, kind: Any) -> object:
    for choice in get_args(kind):
        plain = value.text if isinstance(value, Text) else value
        if type(plain) is type(choice) and plain == choice:
            return choice
    raise ConversionError(f"choose one of {', '.join(map(str, get_args(kind)))}")


def _tuple_hook(kind: Any) -> Callable[[object, Any], tuple[object, ...]]:
    item = get_args(kind)[0]

    def structure(value: object, _: Any) -> tuple[object, ...]:
        if isinstance(value, Text):
            inner = value.text.strip().removeprefix("[").removesuffix("]")
            value = [Text(part.strip()) for part in inner.split(",")] if inner.strip() else []
        elif isinstance(value, (str, int, float)):
            value = [value]
        if not isinstance(value, Iterable) or isinstance(value, Mapping):
            raise ConversionError("give a list")
        try:
            return tuple(CONVERTER.structure(part, item) for part in value)
        except ConversionError as error:
            raise ConversionError(f"give a list; for each entry, {error}") from error

    return structure


def _is_literal(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is Literal


def _is_frozenset(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is frozenset


def _is_homogeneous_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple and len(get_args(kind)) == 2 and get_args(kind)[1] is Ellipsis


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False, forbid_extra_keys=True)
    converter.register_structure_hook(int, _integer)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(bool, _flag)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook_func(lambda kind: kind is object, lambda value, _: value)
    converter.register_structure_hook_func(_is_literal, _literal)
    converter.register_structure_hook_factory(_is_homogeneous_tuple, _tuple_hook)
    converter.register_unstructure_hook(types.MappingProxyType, dict)
    converter.register_unstructure_hook(
        frozendict, lambda value: {name: converter.unstructure(each) for name, each in value.items()}
    )
    converter.register_unstructure_hook_func(_is_frozenset, sorted)
    return converter


CONVERTER: Final = _make_converter()
