"""Which static shape a step takes: its rows and sequences rounded up to one of few sizes."""

from __future__ import annotations

import attrs

from diffulex_core.padding import ROW_MULTIPLE

_FEW_ROWS = 64
MOST_ROWS = 1024
"""Larger decode steps keep a device busy for longer than the host needs to launch them."""


@attrs.frozen(kw_only=True)
class Bucket:
    """One static shape.

    Attributes:
        rows: of the forward, padding included.
        sequences: page tables that there is room for.
        soft: whether rows may be fed embeddings.
    """

    rows: int
    sequences: int
    soft: bool = False


@attrs.frozen(kw_only=True)
class Limits:
    """How large a step of static shape may be; 0 = none is.

    Attributes:
        decode_rows: rows of a step that feeds no known tokens.
        prefill_rows: rows of a step that feeds a prompt or what a preemption cost, beside decoding rows or alone.
        pages: pages of a sequence.
    """

    decode_rows: int
    prefill_rows: int
    pages: int

    def bucket(self, *, rows: int, sequences: int, pages: int, prefill: bool, soft: bool) -> Bucket | None:
        """The bucket of a step, None where it is too large for any.

        Args:
            rows, sequences: of the step.
            pages: of its longest sequence.
            prefill: whether it feeds known tokens.
            soft: whether rows of it are fed embeddings.
        """
        if rows > (self.prefill_rows if prefill else self.decode_rows) or pages > self.pages:
            return None
        return Bucket(rows=padded_rows(rows), sequences=1 << (sequences - 1).bit_length(), soft=soft)


def padded_rows(rows: int) -> int:
    """The bucket's rows: powers of two up to 64, which all cost a GPU the same; above, four sizes for each doubling."""
    doubling = 1 << (rows - 1).bit_length()
    if doubling <= _FEW_ROWS:
        return max(doubling, ROW_MULTIPLE)
    return -(-rows // (doubling // 8)) * (doubling // 8)
