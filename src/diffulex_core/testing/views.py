"""Who sees whom in a sequence, for networks under test: one exclusive end of the visible keys for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from diffulex_core.plugin import Capability, ModelFamily

BLOCK = 4
"""Tokens of a block in the kit's sequences."""
PROMPT = 6
"""Tokens of a prompt there: one block and a half."""


@attrs.frozen(kw_only=True)
class View:
    """A visibility.

    Attributes:
        name: for messages.
        end: (position, length of the sequence) -> exclusive end of what the row there sees.
        cuts: whether the rows of a sequence may be fed block by block.
    """

    name: str
    end: Callable[[int, int], int]
    cuts: bool = True

    def ends(self, length: int, start: int = 0) -> list[int]:
        """For the rows from `start` on of a sequence."""
        return [min(self.end(position, length), length) for position in range(start, length)]


def _block_end(position: int, length: int) -> int:
    return (position // BLOCK + 1) * BLOCK


BLOCK_CAUSAL = View(name="block-causal", end=_block_end)
FULL = View(name="full", end=lambda position, length: length, cuts=False)
FULL_PREFIX = View(
    name="full-prefix",
    end=lambda position, length: PROMPT if position < PROMPT else _block_end(position, length),
    cuts=False,
)
CAUSAL = View(name="causal", end=lambda position, length: position + 1)
"""Of a family that names none of the others: its own strategy's rows see at least what precedes them."""


def views_of(family: ModelFamily) -> Sequence[View]:
    """The visibilities that a family says it may be run under; causal rows where it names none."""
    named = {
        Capability.BLOCK_CAUSAL: BLOCK_CAUSAL,
        Capability.FULL_PREFIX: FULL_PREFIX,
        Capability.FULL_ATTENTION: FULL,
    }
    return [view for capability, view in named.items() if capability in family.provides] or [CAUSAL]


def cut_view(family: ModelFamily) -> View:
    """A visibility under which sequences may be fed block by block."""
    return next((view for view in views_of(family) if view.cuts), CAUSAL)
