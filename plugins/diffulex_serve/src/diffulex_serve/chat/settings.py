"""How the next answers are decoded, as the commands of a conversation set it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from diffulex_core.plugin import InvalidSamplingParams

DEFAULT = "default"
"""What is typed to leave a setting to the checkpoint again."""
_THRESHOLD = "accept_threshold"


@attrs.frozen(kw_only=True)
class Knob:
    """A command that sets something.

    Attributes:
        field: of `SamplingParams`; for `/conf` the threshold.
        read: makes the value from what was typed; raises ValueError.
        help: what it does.
    """

    field: str
    read: Callable[[str], int | float]
    help: str


KNOBS: Mapping[str, Knob] = {
    "temp": Knob(field="temperature", read=float, help="Temperature; 0 = the most probable tokens."),
    "topk": Knob(field="top_k", read=int, help="Draw from this many most probable tokens."),
    "topp": Knob(field="top_p", read=float, help="Draw from the smallest set that reaches this probability."),
    "max": Knob(field="max_tokens", read=int, help="Most tokens of an answer."),
    "iter": Knob(field="max_nfe", read=int, help="Most forwards of an answer."),
    "conf": Knob(field=_THRESHOLD, read=float, help="Decide positions whose confidence is greater."),
}


@attrs.frozen(kw_only=True)
class Settings:
    """What was set; everything else is the checkpoint's recommendation.

    Attributes:
        values: fields of `SamplingParams`, thresholds among them.
    """

    values: Mapping[str, Any] = attrs.field(factory=dict)

    def of(self, name: str) -> int | float | None:
        """What a command set; None = nothing."""
        field = KNOBS[name].field
        value: int | float | None = self._table(field).get(field)
        return value

    def changed(self, name: str, text: str) -> Settings:
        """The settings after a command.

        Raises:
            InvalidSamplingParams: the text is no such value.
        """
        knob = KNOBS[name]
        table = {key: value for key, value in self._table(knob.field).items() if key != knob.field}
        if text != DEFAULT:
            try:
                table[knob.field] = knob.read(text)
            except ValueError:
                kind = "a whole number" if knob.read is int else "a number"
                raise InvalidSamplingParams(f"/{name} wants {kind} or {DEFAULT!r}, and not {text!r}.") from None
        if knob.field != _THRESHOLD:
            return _checked(table)
        rest = {key: value for key, value in self.values.items() if key != "thresholds"}
        return _checked({**rest, **({"thresholds": table} if table else {})})

    def _table(self, field: str) -> Mapping[str, Any]:
        table: Mapping[str, Any] = self.values.get("thresholds", {}) if field == _THRESHOLD else self.values
        return table


def _checked(values: Mapping[str, Any]) -> Settings:
    """The settings of such values.

    Raises:
        InvalidSamplingParams: one cannot be used.
    """
    from diffulex_core.plugin import SamplingParams

    SamplingParams(**values)
    return Settings(values=values)
