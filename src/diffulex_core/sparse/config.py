"""How a request's canvas is cached between its full passes."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

import attrs
import numpy as np

T = TypeVar("T")


# Not one generic function: type checkers would accept everything as an argument of the constructor.
def _number(value: float) -> float:
    return _plain(value)


def _number_or_none(value: float | None) -> float | None:
    return _plain(value)


def _whole(value: int) -> int:
    return _plain(value)


def _whole_or_none(value: int | None) -> int | None:
    return _plain(value)


def _flag(value: bool) -> bool:
    return _plain(value)


def _plain(value: T) -> T:
    """A numpy scalar as the Python number that it is."""
    return value.item() if isinstance(value, np.generic) else value


@attrs.frozen(kw_only=True)
class SparseConfig:
    """The sparse cache of one canvas request (dLLM-Serve's, arXiv 2512.17077).

    Most steps feed only the current block and read stored K/V of the tokens outside it. Each block begins with
    `delay_step` full passes; one more stores the K/V of the tokens outside that the block's queries attend to most.

    Attributes:
        enabled: False is the same as no configuration.
        retention_ratio: share of the tokens outside the block whose K/V are kept, above 0; 1 keeps all of them.
        delay_step: full passes of a block before the one that stores, less than `default_block_len`.
        default_block_len: length of blocks where neither request nor engine gives a `block_length`.
        head_select: every KV head keeps tokens of its own; otherwise all keep the same.
        pool_kernel: a token counts as much as the best of so many around it; odd.
        refresh_every: store anew after so many steps; None = once for each block.
        refresh_drift: store anew once this share of the block's tokens has changed since; None = never.
        force_first: dLLM-Serve's rule for shifted logits: a block's first position is decided in its first step,
            instead of feeding the token before the block along.
    """

    enabled: bool = attrs.field(default=True, converter=_flag)
    retention_ratio: float = attrs.field(default=0.5, converter=_number)
    delay_step: int = attrs.field(default=1, converter=_whole)
    default_block_len: int = attrs.field(default=32, converter=_whole)
    head_select: bool = attrs.field(default=False, converter=_flag)
    pool_kernel: int = attrs.field(default=3, converter=_whole)
    refresh_every: int | None = attrs.field(default=None, converter=_whole_or_none)
    refresh_drift: float | None = attrs.field(default=None, converter=_number_or_none)
    force_first: bool = attrs.field(default=False, converter=_flag)

    def problems(self) -> list[str]:
        """One sentence for each value that cannot be used."""
        found = [
            f"{name} is {value!r}; give True or False."
            for name, value in (
                ("enabled", self.enabled),
                ("head_select", self.head_select),
                ("force_first", self.force_first),
            )
            if not isinstance(value, bool)
        ]
        found += [
            f"{name} is {value!r}; give a whole number of at least {least}{' or None' * optional}."
            for name, value, least, optional in (
                ("delay_step", self.delay_step, 0, False),
                ("default_block_len", self.default_block_len, 1, False),
                ("refresh_every", self.refresh_every, 1, True),
            )
            if not (optional and value is None) and not (_is_whole(value) and value >= least)
        ]
        found += [
            f"{name} is {value!r}; give a number above 0 and at most 1{' or None' * optional}."
            for name, value, optional in (
                ("retention_ratio", self.retention_ratio, False),
                ("refresh_drift", self.refresh_drift, True),
            )
            if not (optional and value is None) and not (_is_number(value) and 0 < value <= 1)
        ]
        if not (_is_whole(self.pool_kernel) and self.pool_kernel >= 1 and self.pool_kernel % 2):
            found.append(f"pool_kernel is {self.pool_kernel!r}; give an odd number of at least 1.")
        if not found and self.delay_step >= self.default_block_len:
            found.append(
                f"delay_step is {self.delay_step}, but must be less than default_block_len, {self.default_block_len}: "
                "a block whose steps are all full passes has no use for a cache."
            )
        return [f"sparse: {problem}" for problem in found]

    def kept_of(self, outside: int) -> int:
        """Tokens that are kept of so many outside the block."""
        # 0.29 * 100 is a hair less than 29.
        return min(outside, max(1, int(outside * self.retention_ratio + 1e-9)))


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    # NaN is the only number that differs from itself.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
