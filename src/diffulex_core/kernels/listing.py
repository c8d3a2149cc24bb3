"""Every kernel with its twin in plain torch, and calls of both at sizes that tell: for checks, tests and timings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import methodcaller
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.layers.contract import HeadNorms
from diffulex_core.kernels.layers.fused import TritonLayers
from diffulex_core.kernels.layers.twins import TorchLayers
from diffulex_core.kernels.moe.fused import TritonExperts
from diffulex_core.kernels.moe.grouped import TorchExperts
from diffulex_core.layers.moe.spec import Activation, MoESpec
from diffulex_core.layers.rope import Rope
from diffulex_core.sampling.facts import Wanted

Sizes = Mapping[str, int]
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh")


@attrs.frozen(kw_only=True, eq=False)
class Source:
    """Where the tensors of a call come from.

    Attributes:
        case: device and dtype.
        generator: of the numbers.
        strided: rows stand apart in memory.
    """

    case: KernelCase
    generator: torch.Generator
    strided: bool = False

    @classmethod
    def seeded(cls, case: KernelCase, seed: int, *, strided: bool = False) -> Source:
        """The same numbers for the same seed."""
        return cls(case=case, generator=torch.Generator().manual_seed(seed), strided=strided)

    def normal(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        """Normally distributed numbers in the case's dtype."""
        drawn = torch.randn(*shape, generator=self.generator) * scale + mean
        return drawn.to(self.case.device_type, self.case.dtype)

    def rows(self, count: int, width: int, *, scale: float = 1.0) -> Tensor:
        """[count, width] as `normal`; parts of a wider tensor where rows stand apart."""
        return self.laid(self.normal(count, width, scale=scale))

    def laid(self, rows: Tensor) -> Tensor:
        """The same rows, as they stand in memory here."""
        if not self.strided:
            return rows
        wide = rows.new_full((rows.shape[0], rows.shape[1] + 8), 5)
        wide[:, 4:-4] = rows
        return wide[:, 4:-4]

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from `low` up to, not including, `high`; int64."""
        return torch.randint(low, high, shape, generator=self.generator).to(self.case.device_type)

    def among(self, count: int) -> int:
        """One of so many."""
        return int(self.whole(0, count))


@attrs.frozen(kw_only=True, eq=False)
class Call:
    """The arguments of one call.

    Attributes:
        arguments, named: by position, and by name.
        inputs: those that hold floats row by row.
        written: [slots, ...] those that are written, views that share their memory.
        slots: [rows] where in `written` each row goes, -1 for nowhere; None where nothing is written.
    """

    arguments: tuple[Any, ...]
    named: Mapping[str, Any] = attrs.field(factory=dict)
    inputs: tuple[Tensor, ...]
    written: tuple[Tensor, ...] = ()
    slots: Tensor | None = None


@attrs.frozen(kw_only=True, eq=False)
class Operation:
    """A kernel.

    Attributes:
        name: method of the implementation.
        sizes: of calls that tell, the usual ones first; in every one `rows` may be any number.
        draw: makes a call.
        kernel, twin: make the implementations.
    """

    name: str
    sizes: tuple[Sizes, ...]
    draw: Callable[[Sizes, Source], Call]
    kernel: Callable[[], Any] = TritonLayers
    twin: Callable[[], Any] = TorchLayers

    def run(self, implementation: Any, call: Call) -> tuple[Tensor, ...]:
        """What an implementation returns, as tensors in the order of its parts."""
        return tuple(_tensors(methodcaller(self.name, *call.arguments, **call.named)(implementation)))


def _tensors(result: Any) -> list[Tensor]:
    match result:
        case Tensor():
            return [result]
        case tuple():
            return [tensor for part in result for tensor in _tensors(part)]
        case None:
            return []
        case _:
            return [tensor for part in attrs.asdict(result, recurse=False).values() for tensor in _tensors(part)]


def _normed(sizes: Sizes, source: Source) -> Call:
    x = source.rows(sizes["rows"], sizes["width"])
    weight = source.normal(sizes["width"], scale=0.3, mean=1.0) if source.among(3) else None
    return Call(arguments=(x, weight, 1e-5), named={"wide": bool(source.among(2))}, inputs=(x,))


def _added(sizes: Sizes, source: Source) -> Call:
    x, addend = (source.rows(sizes["rows"], sizes["width"]) for _ in range(2))
    weight = source.normal(sizes["width"], scale=0.3, mean=1.0)
    return Call(arguments=(x, addend, weight, 1e-2), named={"wide": bool(source.among(2))}, inputs=(x, addend))


def _gated(sizes: Sizes, source: Source) -> Call:
    packed = source.rows(sizes["rows"], 2 * sizes["size"], scale=2.0)
    return Call(arguments=(packed, ACTIVATIONS[source.among(2)]), inputs=(packed,))


def _turned(sizes: Sizes, source: Source) -> Call:
    rows, heads, kv_heads, width = (sizes[name] for name in ("rows", "heads", "kv_heads", "head_dim"))
    packed = source.rows(rows, (heads + 2 * kv_heads) * width).unflatten(1, (-1, width))
    query, key, value = packed.tensor_split((heads, heads + kv_heads), dim=1)
    if sizes["norms"] == 2 and source.among(2):
        value = key
    norms = HeadNorms(
        query=source.normal(width, scale=0.3, mean=1.0),
        key=source.normal(width, scale=0.3, mean=1.0),
        eps=1e-5,
        wide=sizes["norms"] == 2,
        values=sizes["norms"] == 2,
    )
    rope = Rope(theta=1e4, rotary_dim=sizes["rotary_dim"], turning=None if source.among(2) else 1)
    pages = -(-2 * rows // sizes["page_size"]) + 1
    total = pages * sizes["page_size"]
    slots = torch.randperm(total, generator=source.generator)[:rows].to(source.case.device_type)
    slots[source.whole(0, 4, rows) == 0] = -1
    stores = [source.normal(pages, sizes["page_size"], kv_heads, width) for _ in range(2)]
    return Call(
        arguments=(query, key, value),
        named={
            "norms": norms if sizes["norms"] else None,
            "rotation": rope.rotation(source.whole(0, 300, rows)),
            "slots": slots,
            "key_pages": stores[0],
            "value_pages": stores[1],
        },
        inputs=(query, key, value),
        written=tuple(store.flatten(0, 1) for store in stores),
        slots=slots,
    )


ROUTERS = (
    MoESpec(num_experts=7, experts_per_token=3, expert_size=4, router="softmax", renormalize=True),
    MoESpec(num_experts=8, experts_per_token=1, expert_size=4, router="softmax", renormalize=False, scale=2.5),
    MoESpec(num_experts=9, experts_per_token=2, expert_size=4, router="sigmoid", renormalize=True),
    MoESpec(
        num_experts=12, experts_per_token=4, expert_size=4, router="sigmoid", renormalize=True, num_groups=4,
        groups_kept=2, correction_bias=True, scale=2.5,
    ),
)  # fmt: skip
"""Whole quarters as scores make equal ones, of which the lowest id comes first."""


def _routed(sizes: Sizes, source: Source) -> Call:
    spec = ROUTERS[sizes["router"]]
    logits = source.laid(source.whole(-6, 7, sizes["rows"], spec.num_experts).float() / 4)
    bias = source.whole(-4, 5, spec.num_experts).float() / 8 if spec.correction_bias else None
    return Call(arguments=(logits, bias, spec), inputs=(logits,))


def _blended(sizes: Sizes, source: Source) -> Call:
    rows, count = sizes["rows"], sizes["count"]
    table = source.normal(sizes["vocab"], sizes["width"])
    weights = source.whole(0, 5, rows, count).float() / 4
    match_norm = source.whole(0, 2, rows) > 0
    ids = source.whole(0, sizes["vocab"], rows, count)
    return Call(arguments=(table, ids, weights, match_norm), inputs=(weights,))


def _selected(sizes: Sizes, source: Source) -> Call:
    """Logits that are whole numbers and below 256, which every dtype holds and no order of sums rounds."""
    rows, columns, dtype = sizes["rows"], sizes["columns"], source.case.dtype
    hidden = source.laid(source.whole(-1, 2, rows, sizes["width"]).to(dtype))
    weight = source.whole(-3, 4, columns + sizes["padding"], sizes["width"]).to(dtype)
    weight[columns:] = torch.nan
    bias = source.whole(-20, 21, len(weight)).to(dtype) if source.among(2) else None
    wanted = Wanted(
        columns=columns,
        excluded=tuple(sorted({source.among(columns), columns - 1})) if sizes["excludes"] else (),
        second=bool(source.among(2)),
        entropy=bool(source.among(2)),
        top=sizes["top"],
    )
    if sizes["asks"]:
        wanted = attrs.evolve(
            wanted,
            lowered=source.whole(-1, columns, rows).cpu().numpy(),
            penalty=(source.whole(0, 30, rows).cpu().numpy() / 2).astype(np.float32),
            watched=source.whole(-1, columns + sizes["padding"], rows, 2).cpu().numpy(),
        )
    return Call(arguments=(hidden, weight, bias, wanted), inputs=(hidden,))


def _experts(sizes: Sizes, source: Source) -> Call:
    rows, experts, hidden, size = (sizes[name] for name in ("rows", "experts", "hidden", "size"))
    x = source.rows(rows, hidden)
    ids = source.whole(-1, experts, rows, sizes["slots"]).int()
    weights = source.whole(0, 5, rows, sizes["slots"]).float() / 4
    w13 = source.normal(experts, 2 * size, hidden, scale=hidden**-0.5)
    w2 = source.normal(experts, hidden, size, scale=size**-0.5)
    return Call(arguments=(x, ids, weights, w13, w2, ACTIVATIONS[source.among(2)]), inputs=(x,))


LAYERS: tuple[Operation, ...] = (
    Operation(name="normed", sizes=({"width": 24}, {"width": 100}, {"width": 1}), draw=_normed),
    Operation(name="add_and_norm", sizes=({"width": 24}, {"width": 100}), draw=_added),
    Operation(name="norm_and_add", sizes=({"width": 24}, {"width": 100}), draw=_added),
    Operation(name="gated", sizes=({"size": 20}, {"size": 1100}, {"size": 1}), draw=_gated),
    Operation(
        name="turn_and_store",
        sizes=tuple(
            {"heads": 4, "kv_heads": 2, "head_dim": 10, "rotary_dim": 10, "page_size": 4, "norms": 0} | changed
            for changed in (
                {"norms": 1},
                {"norms": 2},
                {"rotary_dim": 4},
                {"norms": 1, "heads": 3, "kv_heads": 3, "head_dim": 64, "rotary_dim": 64, "page_size": 1},
            )
        ),
        draw=_turned,
    ),
    Operation(name="route", sizes=tuple({"router": index} for index in range(len(ROUTERS))), draw=_routed),
    Operation(
        name="blend",
        sizes=({"vocab": 30, "width": 24, "count": 3}, {"vocab": 5, "width": 7, "count": 1}),
        draw=_blended,
    ),
    Operation(
        name="select",
        sizes=tuple(
            {"columns": 40, "padding": 5, "width": 16, "excludes": 1, "top": 0, "asks": 0} | changed
            for changed in (
                {"asks": 1, "top": 3},
                {"excludes": 0},
                {"columns": 300, "width": 24, "top": 9},
                {"columns": 3, "padding": 0, "top": 4, "asks": 1},
            )
        ),
        draw=_selected,
    ),
)
"""The methods of `LayerKernels`."""

EXPERTS = Operation(
    name="__call__",
    sizes=(
        {"slots": 2, "experts": 5, "hidden": 8, "size": 12},
        {"slots": 4, "experts": 12, "hidden": 36, "size": 68},
    ),
    draw=_experts,
    kernel=TritonExperts,
    twin=TorchExperts,
)
"""`ExpertsKernel`."""

KERNELS: tuple[Operation, ...] = (*LAYERS, EXPERTS)
"""Attention is apart: backends are registered with it, and `torch_ref` is the twin of all of them."""
