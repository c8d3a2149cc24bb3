"""Messages as bytes: msgpack of plain data, one converter, no pickle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import cattrs
import msgpack
from cattrs.preconf.msgpack import make_converter
from cattrs.strategies import configure_tagged_union

from diffulex_core.plugin import DiffulexError
from diffulex_serve.engine.messages import VERSION, Command, Event


class WireError(DiffulexError, ValueError):
    """Bytes that are no messages of this version. Frontend and engine must run the same version of diffulex-serve."""


def encode(messages: Sequence[Command | Event]) -> bytes:
    """Some messages, in order."""
    packed: bytes = msgpack.packb([VERSION, [_CONVERTER.unstructure(each, Command | Event) for each in messages]])
    return packed


def decode_commands(data: bytes) -> list[Command]:
    """The commands that `encode` packed.

    Raises:
        WireError: the bytes are something else.
    """
    return [_structured(each, Command) for each in _unpacked(data)]


def decode_events(data: bytes) -> list[Event]:
    """The events that `encode` packed.

    Raises:
        WireError: the bytes are something else.
    """
    return [_structured(each, Event) for each in _unpacked(data)]


def _unpacked(data: bytes) -> list[Any]:
    try:
        content = msgpack.unpackb(data, strict_map_key=False)
    except (TypeError, ValueError, msgpack.UnpackException) as error:  # a list may be the key of a map
        raise WireError(f"A message is no msgpack: {error}.") from error
    match content:
        case [int(version), list(messages)] if version == VERSION:
            return messages
        case [int(version), list()]:
            raise WireError(f"A message is of protocol version {version}, this is version {VERSION}.")
        case _:
            raise WireError("A message has no version and content.")


def _structured(data: Any, kind: Any) -> Any:
    try:
        return _CONVERTER.structure(data, kind)
    except (cattrs.BaseValidationError, KeyError, TypeError, ValueError) as error:
        raise WireError(f"A message cannot be read: {type(error).__name__}: {error}.") from error


def _as_sent(value: Any, _: Any) -> tuple[Any, ...]:
    """Numbers as they were packed; turning each into what it is already took most of the time of reading."""
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} is no list")
    return tuple(value)


def _make_converter() -> cattrs.Converter:
    converter = make_converter(detailed_validation=False, omit_if_default=True)
    converter.register_structure_hook(bool | None | list[str], lambda value, _: value)
    converter.register_structure_hook_func(lambda kind: kind in (tuple[int, ...], tuple[float, ...]), _as_sent)
    for union in (Command, Event, Command | Event):
        configure_tagged_union(union, converter, tag_name="m")
    return converter


_CONVERTER: Final = _make_converter()
