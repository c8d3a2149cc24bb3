"""`triton`: the layers' operations, each in one launch; on the CPU in Triton's interpreter only."""

from __future__ import annotations

import torch
from torch import Tensor

from diffulex_core.attention.triton.tiles import power_of_two
from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.layers import head
from diffulex_core.kernels.layers.contract import HeadNorms
from diffulex_core.kernels.on_triton import DTYPES, reasons_against
from diffulex_core.layers.moe.spec import Activation, MoESpec
from diffulex_core.layers.rope import Rotation
from diffulex_core.sampling.facts import Facts, Wanted

GATE_COLUMNS = 1024


class TritonLayers:
    """Bits are the same in every run, and a row's do not depend on the rows beside it, but for those of `select`."""

    def reasons(self, case: KernelCase) -> list[str]:
        """Triton must be there, and a CUDA device or Triton's interpreter."""
        reasons = reasons_against(case.device_type)
        if case.dtype not in DTYPES:
            reasons.append(f"it computes in float16, bfloat16 or float32, not in {case.dtype}")
        return reasons

    def priority(self, case: KernelCase) -> int:
        """The best on a GPU; the interpreter is for tests, behind the layers' own code."""
        return 20 if case.device_type == "cuda" else -5

    def normed(self, x: Tensor, weight: Tensor | None, eps: float, *, wide: bool = False) -> Tensor:
        """See `LayerKernels`."""
        return _norm(x, None, weight, eps, wide=wide)[1]

    def add_and_norm(
        self, x: Tensor, addend: Tensor, weight: Tensor, eps: float, *, wide: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See `LayerKernels`."""
        return _norm(x, addend, weight, eps, wide=wide)

    def norm_and_add(self, x: Tensor, addend: Tensor, weight: Tensor, eps: float, *, wide: bool = False) -> Tensor:
        """See `LayerKernels`."""
        from diffulex_core.kernels.layers.row_kernels import norm_and_add_row

        x, addend = _in_order(x), _in_order(addend)
        rows, width = x.shape
        out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
        if rows:
            with torch.cuda.device_of(x):
                norm_and_add_row[(rows,)](
                    x, addend, weight, out, width, eps, x.stride(0), addend.stride(0), wide=wide,
                    block=power_of_two(width), num_warps=_warps(width),
                )  # fmt: skip
        return out

    def gated(self, packed: Tensor, activation: Activation) -> Tensor:
        """See `LayerKernels`."""
        from diffulex_core.kernels.layers.row_kernels import gate_row

        rows, size = len(packed), packed.shape[1] // 2
        packed = _in_order(packed)
        out = packed.new_empty(rows, size)
        columns = min(GATE_COLUMNS, power_of_two(size))
        if rows:
            with torch.cuda.device_of(packed):
                gate_row[(rows, -(-size // columns))](
                    packed, out, size, packed.stride(0), gelu=activation == "gelu_tanh", columns=columns
                )
        return out

    def turn_and_store(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        norms: HeadNorms | None,
        rotation: Rotation,
        slots: Tensor,
        key_pages: Tensor,
        value_pages: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `LayerKernels`."""
        from diffulex_core.kernels.layers.head_row_kernels import turn_head

        query, key, value = (_in_order(each) for each in (query, key, value))
        (rows, heads, head_dim), kv_heads = query.shape, key.shape[1]
        assert all(pages.is_contiguous() for pages in (key_pages, value_pages)), "slots follow one another"
        out_query, out_key = (torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in (query, key))
        norm_values = norms is not None and norms.values
        out_value = torch.empty_like(out_key) if norm_values else value
        if rows:
            with torch.cuda.device_of(query):
                turn_head[(rows, heads + 2 * kv_heads)](
                    query, key, value, query if norms is None else norms.query, key if norms is None else norms.key,
                    rotation.cos.contiguous(), rotation.sin.contiguous(), slots, out_query, out_key, out_value,
                    key_pages, value_pages, heads, kv_heads, 0.0 if norms is None else norms.eps,
                    *query.stride()[:2], *key.stride()[:2], *value.stride()[:2], with_norms=norms is not None,
                    wide=norms is not None and norms.wide, norm_values=norm_values, head_dim=head_dim,
                    half=rotation.cos.shape[-1], width=power_of_two(head_dim), num_warps=1,
                )  # fmt: skip
        return out_query, out_key, out_value

    def route(self, logits: Tensor, bias: Tensor | None, spec: MoESpec) -> tuple[Tensor, Tensor]:
        """See `LayerKernels`."""
        from diffulex_core.kernels.layers.row_kernels import route_row

        logits, chosen = logits.contiguous(), spec.experts_per_token
        rows, experts = logits.shape
        ids = torch.empty(rows, chosen, dtype=torch.int32, device=logits.device)
        weights = torch.empty(rows, chosen, dtype=torch.float32, device=logits.device)
        sigmoid = spec.router == "sigmoid"
        if rows:
            with torch.cuda.device_of(logits):
                route_row[(rows,)](
                    logits, logits if bias is None else bias, ids, weights, float(spec.scale), experts=experts,
                    chosen=chosen, block=power_of_two(experts), slots=power_of_two(chosen), sigmoid=sigmoid,
                    with_bias=bias is not None, renormalize=spec.renormalize and (chosen > 1 or not sigmoid),
                    groups=spec.num_groups if spec.limited else 1, groups_kept=spec.groups_kept if spec.limited else 1,
                    num_warps=1,
                )  # fmt: skip
        return ids, weights

    def blend(self, table: Tensor, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        """See `LayerKernels`."""
        from diffulex_core.kernels.layers.row_kernels import blend_row

        (rows, count), hidden = ids.shape, table.shape[1]
        out = table.new_empty(rows, hidden)
        if rows:
            with torch.cuda.device_of(table):
                blend_row[(rows,)](
                    table, ids.contiguous(), weights.contiguous(), match_norm.to(torch.int8), out, hidden, count,
                    table.stride(0), block=power_of_two(hidden), num_warps=_warps(hidden),
                )  # fmt: skip
        return out

    def select(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Facts:
        """See `LayerKernels`."""
        return head.select(hidden, weight, bias, wanted)


def _norm(x: Tensor, addend: Tensor | None, weight: Tensor | None, eps: float, *, wide: bool) -> tuple[Tensor, Tensor]:
    """The sum, or `x` where nothing is added, and its norm."""
    from diffulex_core.kernels.layers.row_kernels import norm_row

    x, added = _in_order(x), None if addend is None else _in_order(addend)
    rows, width = x.shape
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    total = x if added is None else torch.empty_like(out)
    if rows:
        with torch.cuda.device_of(x):
            norm_row[(rows,)](
                x, x if added is None else added, x if weight is None else weight, total, out, width, eps, x.stride(0),
                0 if added is None else added.stride(0), with_addend=added is not None, with_weight=weight is not None,
                wide=wide, block=power_of_two(width), num_warps=_warps(width),
            )  # fmt: skip
    return total, out


def _warps(width: int) -> int:
    """One for 512 numbers of a row, 16 at most; Triton takes powers of two only."""
    return min(16, max(1, power_of_two(width) // 512))


def _in_order(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
