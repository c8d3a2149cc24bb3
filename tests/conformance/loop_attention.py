"""An attention backend as a stranger might write it: row by row, from the tensors alone. Mutants break one method."""

from __future__ import annotations

import torch
from torch import Tensor

from diffulex_core.attention.case import AttentionCase
from diffulex_core.types import AttentionBatch


def probe(case: AttentionCase) -> list[str]:
    """Heads of a power of two on the CPU only, so that the kit has to find cases that fit."""
    reasons = case.head_problems()
    if case.device_type != "cpu":
        reasons.append("it runs on the CPU only")
    if case.head_dim & (case.head_dim - 1):
        reasons.append(f"head_dim is {case.head_dim}, and it serves powers of two only")
    return reasons


class LoopAttention:
    """A sound backend."""

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        out = self.output(query)
        for row in range(len(query)):
            slots = torch.arange(self.start(batch, row), self.end(batch, row))
            if len(slots) == 0:
                self.empty(out, row)
                continue
            table = self.table(batch, row)
            size = self.page_size(batch)
            where = table[(slots // size).clamp(max=len(table) - 1)], slots % size
            heads = self.kv_heads(query.shape[1], key_pages.shape[2])
            keys, values = (self.read(pages, where)[:, heads] for pages in (key_pages, value_pages))
            out[row] = self.row(query[row], keys, values, scale).to(out.dtype)
        return out

    def output(self, query: Tensor) -> Tensor:
        return torch.zeros(query.shape, dtype=query.dtype)

    def start(self, batch: AttentionBatch, row: int) -> int:
        return int(batch.key_start[row])

    def end(self, batch: AttentionBatch, row: int) -> int:
        return int(batch.key_end[row])

    def empty(self, out: Tensor, row: int) -> None:
        """What becomes of a row without keys."""

    def table(self, batch: AttentionBatch, row: int) -> Tensor:
        return batch.page_tables[batch.row_sequence[row]]

    def page_size(self, batch: AttentionBatch) -> int:
        return batch.page_size

    def kv_heads(self, heads: int, kv_heads: int) -> Tensor:
        return torch.arange(heads) // (heads // kv_heads)

    def read(self, pages: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
        return pages[where]

    def row(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """[heads, head_dim] of [heads, head_dim] and [keys, heads, head_dim] each."""
        scores = torch.einsum("hd,khd->hk", query.float(), keys.float()) * scale
        return torch.einsum("hk,khd->hd", scores.softmax(dim=1), values.float())
