"""What attention means, in float64: one row and one head after the other, out of the pages."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffulex_core.types import AttentionBatch


def dense(query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float) -> Tensor:
    """[rows, heads, head_dim] float64 on the CPU; arguments as `AttentionBackend.attend` has them."""
    queries, keys, values = (tensor.detach().cpu().double().numpy() for tensor in (query, key_pages, value_pages))
    group = queries.shape[1] // keys.shape[2]
    out = np.zeros(queries.shape)
    for row in range(len(queries)):
        table = batch.page_tables[int(batch.row_sequence[row])].tolist()
        slots = range(int(batch.key_start[row]), int(batch.key_end[row]))
        seen = [table[slot // batch.page_size] for slot in slots], [slot % batch.page_size for slot in slots]
        for head in range(queries.shape[1] if slots else 0):
            own_keys, own_values = keys[*seen, head // group], values[*seen, head // group]
            scores = own_keys @ queries[row, head] * scale
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ own_values / weights.sum()
    return torch.from_numpy(out)
