"""What attention means, in float64: one row and one head after the other, key by key out of the pages."""

from __future__ import annotations

import math

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
        seen = [
            (table[slot // batch.page_size], slot % batch.page_size)
            for slot in range(int(batch.key_start[row]), int(batch.key_end[row]))
        ]
        for head in range(queries.shape[1]):
            scores = [float(queries[row, head] @ keys[page, at, head // group]) * scale for page, at in seen]
            best = max(scores, default=0.0)
            weights = [math.exp(score - best) for score in scores]
            total = math.fsum(weights)
            for weight, (page, at) in zip(weights, seen, strict=True):
                out[row, head] += weight / total * values[page, at, head // group]
    return torch.from_numpy(out)
