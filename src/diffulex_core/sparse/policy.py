"""`sparse_refresh`: keep the tokens that the block's queries attend to most."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.types import KVGeometry, Refresh


@attrs.frozen(kw_only=True, eq=False)
class SparseRefresh:
    """dLLM-Serve's choice (arXiv 2512.17077), in fp32.

    A token's score is the mean query of the block times its key: summed over all query heads, or with `per_head` the
    highest of those that share its KV head. The best score among `pool` neighbours counts, where tokens on both sides
    of the block are neighbours. Of equals the first is kept.

    Attributes:
        geometry: heads of each layer that this process holds.
        tp: the processes that share each layer. Sums go over the heads of all of them.
    """

    geometry: Sequence[KVGeometry]
    tp: Communicator = ALONE

    def keep(self, layer: int, query: Tensor, key: Tensor, refresh: Refresh) -> Tensor:
        """See `CachePolicy.keep`."""
        rows, kv_heads, head_dim = key.shape
        at = torch.arange(rows - (refresh.end - refresh.start), device=key.device)
        outside = torch.where(at < refresh.start, at, at + refresh.end - refresh.start)
        wanted = query[refresh.start : refresh.end].float().mean(0).view(kv_heads, -1, head_dim)
        scores = torch.einsum("kgd,tkd->kgt", wanted, key[outside].float()) * head_dim**-0.5
        scores = self._of_each_head(scores, layer) if refresh.per_head else self.tp.sum(scores.sum((0, 1)))[None]
        pooled = functional.max_pool1d(scores[None], refresh.pool, stride=1, padding=refresh.pool // 2)[0]
        best = pooled.sort(dim=1, descending=True, stable=True).indices[:, : refresh.keep]
        return outside[best.sort(dim=1).values].expand(kv_heads, -1)

    def _of_each_head(self, scores: Tensor, layer: int) -> Tensor:
        """[kv_heads, group, t] -> [kv_heads, t], also where several processes hold the queries of one KV head."""
        best = scores.amax(1)
        copies = self.geometry[layer].copies
        if copies == 1:
            return best
        first = self.tp.rank // copies * copies
        return self.tp.gather(best)[first : first + copies].amax(0)
