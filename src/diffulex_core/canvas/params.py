"""What a request may say about its canvas; strategies that decode otherwise refuse it."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

import attrs
import numpy as np

REMASKING = ("low_confidence", "random")
ALGORITHMS = ("quota", "confidence_threshold", "origin", "maskgit_plus", "topk_margin", "entropy")
"""Names of `alg`; each strategy offers some of them."""

LONGEST = 1 << 20
"""Most positions or steps that can be asked for."""

T = TypeVar("T")


# Not one generic function: type checkers would accept everything as an argument of the constructor.
def _number(value: float | None) -> float | None:
    return _plain(value)


def _whole(value: int | None) -> int | None:
    return _plain(value)


def _flag(value: bool | None) -> bool | None:
    return _plain(value)


def _plain(value: T) -> T:
    """A numpy scalar as the Python number that it is."""
    return value.item() if isinstance(value, np.generic) else value


@attrs.frozen(kw_only=True)
class CanvasParams:
    """Settings of fixed-length generation. None = as the engine's configuration says.

    Attributes:
        gen_length: masks that are put behind the prompt; unset here and there, it is `max_tokens`, cut at the context.
        steps: forwards in which they are decided.
        block_length: the canvas is decided in blocks of this length, from the left.
        cfg_scale: weight of classifier-free guidance; 0 = none. Above 0 every step costs twice the rows.
        remasking: which positions stay masked: those of `low_confidence`, or `random` ones.
        suppress_eos: end tokens are never chosen.
        defer_eos: positions that would become an end token are decided after all others.
        alg: the algorithm, among those that the strategy offers.
        alg_temp: above 0 positions are drawn with weights softmax(confidence / alg_temp).
        eps: end of the time grid, above 0 and below 1.
        skip_empty_steps: leave out forwards that would decide nothing.
    """

    gen_length: int | None = attrs.field(default=None, converter=_whole)
    steps: int | None = attrs.field(default=None, converter=_whole)
    block_length: int | None = attrs.field(default=None, converter=_whole)
    cfg_scale: float | None = attrs.field(default=None, converter=_number)
    remasking: str | None = None
    suppress_eos: bool | None = attrs.field(default=None, converter=_flag)
    defer_eos: bool | None = attrs.field(default=None, converter=_flag)
    alg: str | None = None
    alg_temp: float | None = attrs.field(default=None, converter=_number)
    eps: float | None = attrs.field(default=None, converter=_number)
    skip_empty_steps: bool | None = attrs.field(default=None, converter=_flag)

    def canvas_problems(self) -> list[str]:
        """One sentence for each value that cannot be used."""
        return [
            *(
                f"{name} is {value!r}; give a whole number from 1 to {LONGEST} or None."
                for name, value in (
                    ("gen_length", self.gen_length),
                    ("steps", self.steps),
                    ("block_length", self.block_length),
                )
                if value is not None and not (_is_whole(value) and 1 <= value <= LONGEST)
            ),
            *(
                f"{name} is {value!r}; give a number {bounds} or None."
                for name, value, bounds, least, most in (
                    ("cfg_scale", self.cfg_scale, "from 0 to 1000", 0, 1000),
                    ("alg_temp", self.alg_temp, "from 0 to 1e6", 0, 1e6),
                    ("eps", self.eps, "from 1e-9 to 0.999999", 1e-9, 0.999999),
                )
                if value is not None and not (_is_number(value) and least <= value <= most)
            ),
            *(
                f"{name} is {value!r}; give True, False or None."
                for name, value in (
                    ("suppress_eos", self.suppress_eos),
                    ("defer_eos", self.defer_eos),
                    ("skip_empty_steps", self.skip_empty_steps),
                )
                if value is not None and not isinstance(value, bool)
            ),
            *(
                f"{name} is {value!r}; choose one of {', '.join(names)}."
                for name, value, names in (("remasking", self.remasking, REMASKING), ("alg", self.alg, ALGORITHMS))
                if value is not None and value not in names
            ),
        ]


CANVAS_FIELDS = tuple(field.name for field in attrs.fields(CanvasParams))
"""Names of the settings."""


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    # NaN is the only number that differs from itself.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
