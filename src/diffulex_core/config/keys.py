"""What is known about one configuration key: its help, bounds, other names and whether its machinery exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

Source = Literal["default", "family", "strategy", "checkpoint", "tokenizer", "file", "environment", "user"]
USER_SOURCES: frozenset[Source] = frozenset({"file", "environment", "user"})

_METADATA = "diffulex"


@attrs.frozen(kw_only=True)
class Origin:
    """Who set a value.

    Attributes:
        source: the layer that won.
        detail: the family, strategy, file, variable or manner that carried it.
    """

    source: Source = "default"
    detail: str = ""

    @property
    def by_user(self) -> bool:
        """Whether a person asked for the value: a config file, the environment, or an argument."""
        return self.source in USER_SOURCES

    def __str__(self) -> str:
        match self.source:
            case "default":
                return "default"
            case "family":
                return f"model family '{self.detail}'"
            case "strategy":
                return f"strategy '{self.detail}'"
            case "checkpoint":
                return f"checkpoint, {self.detail}"
            case "tokenizer":
                return "tokenizer"
            case "file":
                return f"config file {self.detail}"
            case "environment":
                return f"environment variable {self.detail}"
            case "user":
                return f"given by {self.detail}" if self.detail else "given"


@attrs.frozen(kw_only=True)
class KeyInfo:
    """Metadata of one key.

    Attributes:
        help: one sentence for the documentation and the command line.
        aliases: other names under which the key may be given.
        minimum, maximum: inclusive bounds of a number.
        above: exclusive lower bound of a number.
        choices: the values allowed, when they are few and the type does not say so.
        sized: a size in tokens; families and strategies may add choices (`sizes` of their descriptors).
        pattern: a regular expression that a text value must match in full.
        form: the pattern in words.
        built: False while the machinery behind the key does not exist, or where there will be none.
        why: of a key that is not built: why there is no such machinery, and what to do instead.
        honoured: of a key that is not built: values that do what they say all the same. Its default is accepted too;
            every other value is refused.
        generation_config: paths in the checkpoint's generation_config.json that may set the key ("a.b" looks into "a").
    """

    help: str = ""
    aliases: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: tuple[object, ...] = ()
    sized: bool = False
    pattern: str | None = None
    form: str = ""
    built: bool = True
    why: str = ""
    honoured: tuple[object, ...] = ()
    generation_config: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class GroupInfo:
    """Metadata of a field whose value is itself a frozen attrs class; each of its attributes is a key.

    Attributes:
        leaves: metadata of the attributes that carry none of their own.
        prefixed: whether the keys are named "field.attribute" (True) or plainly "attribute".
    """

    leaves: Mapping[str, KeyInfo] = attrs.field(factory=dict, hash=False)
    prefixed: bool = True


def key(
    default: object,
    help: str,
    *,
    aliases: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: tuple[object, ...] = (),
    sized: bool = False,
    pattern: str | None = None,
    form: str = "",
    built: bool = True,
    why: str = "",
    honoured: tuple[object, ...] = (),
    generation_config: tuple[str, ...] = (),
) -> Any:
    """A field of a configuration section, also of a plugin's `config_cls`; the arguments are those of `KeyInfo`."""
    info = KeyInfo(
        help=help,
        aliases=aliases,
        minimum=minimum,
        maximum=maximum,
        above=above,
        choices=choices,
        sized=sized,
        pattern=pattern,
        form=form,
        built=built,
        why=why,
        honoured=honoured,
        generation_config=generation_config,
    )
    return attrs.field(default=default, metadata={_METADATA: info})


def group(default: object, *, leaves: Mapping[str, KeyInfo] | None = None, prefixed: bool = True) -> Any:
    """A field whose value is a frozen attrs class of keys."""
    return attrs.field(default=default, metadata={_METADATA: GroupInfo(leaves=leaves or {}, prefixed=prefixed)})


def info_of(field: attrs.Attribute[Any]) -> KeyInfo | GroupInfo:
    """The metadata of a section's field; a field declared without `key` has none but its type and default."""
    info: KeyInfo | GroupInfo = field.metadata.get(_METADATA, KeyInfo())
    return info
