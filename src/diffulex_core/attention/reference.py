"""`torch_ref`: attention as the contract says it, row by row in fp32; what every other backend is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from diffulex_core.attention.case import AttentionCase
from diffulex_core.types import AttentionBatch


def probe(case: AttentionCase) -> list[str]:
    """The reference serves every device and dtype."""
    return case.head_problems()


class TorchReference:
    """Reads each row's interval slot by slot from the tensors of `AttentionBatch`; does not use `runs`."""

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        """See `AttentionBackend.attend`."""
        out = torch.zeros_like(query)
        group = query.shape[1] // key_pages.shape[2]
        for row in range(query.shape[0]):
            indices = torch.arange(int(batch.key_start[row]), int(batch.key_end[row]), device=query.device)
            if len(indices) == 0:
                continue
            pages = batch.page_tables[batch.row_sequence[row], indices // batch.page_size]
            offsets = indices % batch.page_size
            keys = key_pages[pages, offsets].float().repeat_interleave(group, dim=1)  # [keys, heads, head_dim]
            values = value_pages[pages, offsets].float().repeat_interleave(group, dim=1)
            scores = (query[row].float() * keys).sum(-1) * scale  # [keys, heads]
            weights = scores.softmax(dim=0)
            out[row] = (weights[..., None] * values).sum(0).to(query.dtype)
        return out
