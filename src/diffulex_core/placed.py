"""A layout of rows as tensors on the device that runs them."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from diffulex_core.layout import Layout
from diffulex_core.transfer import on_device
from diffulex_core.types import AttentionBatch


@attrs.frozen(kw_only=True, eq=False)
class PlacedLayout:
    """A layout on a device, moved there once for all steps that have it.

    Attributes:
        layout: on the host.
        positions, slots: [rows] int64.
        final: [rows] bool.
        batches: one entry for each layer kind.
    """

    layout: Layout
    positions: Tensor
    slots: Tensor
    final: Tensor
    batches: tuple[AttentionBatch, ...]

    @classmethod
    def of(cls, layout: Layout, page_size: int, device: torch.device) -> PlacedLayout:
        """A layout on `device`; `page_size` is the one that it was made with."""
        page_tables, row_sequence = on_device(layout.page_tables, device), on_device(layout.row_sequence, device)
        return cls(
            layout=layout,
            positions=on_device(layout.positions, device),
            slots=on_device(layout.slots, device),
            final=on_device(layout.final, device),
            batches=tuple(
                AttentionBatch(
                    key_start=on_device(visibility.key_start, device),
                    key_end=on_device(visibility.key_end, device),
                    row_sequence=row_sequence,
                    page_tables=page_tables,
                    page_size=page_size,
                    runs=visibility.runs,
                )
                for visibility in layout.visibility
            ),
        )
