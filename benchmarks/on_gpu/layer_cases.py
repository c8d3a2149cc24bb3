"""Problems for the layers' kernels, the experts' and the head, at shapes of published models and at small ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs
import torch
from benchmarks.on_gpu.compare import Pair
from benchmarks.on_gpu.timing import Cost
from torch import Tensor

from diffulex_core.kernels.layers.contract import HeadNorms
from diffulex_core.kernels.layers.fused import TritonLayers
from diffulex_core.kernels.layers.twins import TorchLayers
from diffulex_core.kernels.moe.fused import TritonExperts
from diffulex_core.kernels.moe.grouped import TorchExperts
from diffulex_core.kernels.moe.naive import NaiveExperts
from diffulex_core.layers.moe.spec import MoESpec
from diffulex_core.layers.rope import Rope
from diffulex_core.sampling.facts import Wanted


@attrs.frozen(kw_only=True)
class Shape:
    """What a model's layers look like to their kernels."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    experts: int = 0
    per_token: int = 0
    expert_size: int = 0
    page_size: int = 32

    @property
    def moe(self) -> MoESpec:
        """Its router."""
        return MoESpec(
            num_experts=self.experts, experts_per_token=self.per_token, expert_size=self.expert_size,
            router="softmax", renormalize=True,
        )  # fmt: skip


MODELS = (
    Shape(name="llada-8b", hidden=4096, heads=32, kv_heads=32, head_dim=128, ffn=12288, vocab=126464),
    Shape(
        name="llada2-mini", hidden=2048, heads=16, kv_heads=4, head_dim=128, ffn=5120, vocab=157184,
        experts=256, per_token=8, expert_size=512,
    ),
    Shape(
        name="gemma-26b", hidden=2816, heads=16, kv_heads=8, head_dim=256, ffn=2112, vocab=262144,
        experts=128, per_token=8, expert_size=704,
    ),
)  # fmt: skip
DRAWN = (
    Shape(
        name="odd", hidden=104, heads=6, kv_heads=2, head_dim=24, ffn=72, vocab=211,
        experts=7, per_token=3, expert_size=40, page_size=8,
    ),
)  # fmt: skip
ROWS = (32, 512)


class Drawn:
    """Random tensors of one problem."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        numbers = torch.randn(*shape, generator=self._generator, device=self.device)
        return (numbers * scale).to(dtype or self.dtype)

    def ids(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self._generator, device=self.device)


def cases(
    device: torch.device, dtype: torch.dtype, *, models: tuple[Shape, ...] = MODELS, rows: tuple[int, ...] = ROWS
) -> Mapping[str, Callable[[], Pair]]:
    """Every kernel on every shape, by name; a pair is made when it is called for."""
    made: dict[str, Callable[[], Pair]] = {}
    for shape in (*DRAWN, *models):
        for count in (5,) if shape in DRAWN else rows:
            for name, make in KERNELS.items():
                if shape.experts or name not in _OF_EXPERTS:
                    made[f"{name} {shape.name} {count} rows"] = partial(make, Drawn(device, dtype), shape, count)
    return made


def _norm(drawn: Drawn, shape: Shape, rows: int) -> Pair:
    x, weight = drawn(rows, shape.hidden), drawn(shape.hidden, scale=0.1) + 1
    return _pair(drawn, TritonLayers().normed, TorchLayers().normed, (x, weight, 1e-6), moved=2 * rows * shape.hidden)


def _add_and_norm(drawn: Drawn, shape: Shape, rows: int) -> Pair:
    x, addend, weight = drawn(rows, shape.hidden), drawn(rows, shape.hidden), drawn(shape.hidden, scale=0.1) + 1
    return _pair(
        drawn,
        TritonLayers().add_and_norm,
        TorchLayers().add_and_norm,
        (x, addend, weight, 1e-6),
        moved=4 * rows * shape.hidden,
    )


def _norm_and_add(drawn: Drawn, shape: Shape, rows: int) -> Pair:
    x, addend, weight = drawn(rows, shape.hidden), drawn(rows, shape.hidden), drawn(shape.hidden, scale=0.1) + 1
    return _pair(
        drawn,
        TritonLayers().norm_and_add,
        TorchLayers().norm_and_add,
        (x, addend, weight, 1e-6),
        moved=3 * rows * shape.hidden,
    )


def _gated(drawn: Drawn, shape: Shape, rows: int) -> Pair:
    return _pair(
        drawn,
        TritonLayers().gated,
        TorchLayers().gated,
        (drawn(rows, 2 * shape.ffn), "silu"),
        moved=3 * rows * shape.ffn,
    )


def _turn_and_store(drawn: Drawn, shape: Shape, rows: int) -> Pair:
    heads, kv_heads, width = shape.heads, shape.kv_heads, shape.head_dim
    packed = drawn(rows, heads + 2 * kv_heads, width)
    query, key, value = packed.split((heads, kv_heads, kv_heads), dim=1)
    norms = HeadNorms(query=drawn(width, scale=0.1) + 1, key=drawn(width, scale=0.1) + 1, eps=1e-6)
    rotation = Rope(theta=1e4, rotary_dim=width).rotation(torch.arange(rows, device=drawn.device))
    pages = -(-rows // shape.page_size) + 1
    slots = torch.randperm(pages * shape.page_size, device=drawn.device)[:rows]

    def call(kernels: Any) -> Callable[[], object]:
        stores = [
            torch.zeros(pages, shape.page_size, kv_heads, width, dtype=drawn.dtype, device=drawn.device) for _ in "kv"
        ]

        def run() -> object:
            turned = kernels.turn_and_store(
                query, key, value, norms=norms, rotation=rotation, slots=slots,
                key_pages=stores[0], value_pages=stores[1],
            )  # fmt: skip
            return (*turned[:2], *stores)

        return run

    moved = rows * width * (2 * heads + 4 * kv_heads)
    return Pair(ours=call(TritonLayers()), twin=call(TorchLayers()), cost=_bytes(drawn, moved), dtype=drawn.dtype)


def _route(drawn: Drawn, shape: Shape, rows: int) -> Pair:
    logits = drawn(rows, shape.experts, dtype=torch.float32)
    cost = Cost(bytes=4.0 * rows * (shape.experts + 2 * shape.per_token))
    ours, twin = (partial(kernels.route, logits, None, shape.moe) for kernels in (TritonLayers(), TorchLayers()))
    return Pair(ours=ours, twin=twin, cost=cost, dtype=torch.float32)


def _blend(drawn: Drawn, shape: Shape, rows: int) -> Pair:
    table, tops = drawn(shape.vocab, shape.hidden), 2
    weights = drawn(rows, tops, dtype=torch.float32).softmax(1)
    match = torch.arange(rows, device=drawn.device) % 2 == 0
    moved = rows * shape.hidden * (tops + 1)
    return _pair(
        drawn,
        TritonLayers().blend,
        TorchLayers().blend,
        (table, drawn.ids(shape.vocab, rows, tops), weights, match),
        moved=moved,
    )


def _select(drawn: Drawn, shape: Shape, rows: int) -> Pair:
    hidden, weight = drawn(rows, shape.hidden), drawn(shape.vocab, shape.hidden, scale=shape.hidden**-0.5 * 3)
    wanted = Wanted(columns=shape.vocab, excluded=(shape.vocab - 1,))

    def seen(facts: Any) -> tuple[Tensor, ...]:
        chosen = (hidden.float() * weight[facts.column].float()).sum(1)
        return facts.best, facts.log_sum, chosen

    ours, twin = (partial(kernels.select, hidden, weight, None, wanted) for kernels in (TritonLayers(), TorchLayers()))
    cost = _bytes(drawn, shape.vocab * shape.hidden + rows * shape.hidden)
    cost += Cost(flops=2.0 * rows * shape.vocab * shape.hidden)
    return Pair(ours=ours, twin=twin, cost=cost, dtype=drawn.dtype, seen=seen)


def _experts(drawn: Drawn, shape: Shape, rows: int) -> Pair:
    count, size, hidden = shape.experts, shape.expert_size, shape.hidden
    w13, w2 = drawn(count, 2 * size, hidden, scale=hidden**-0.5), drawn(count, hidden, size, scale=size**-0.5)
    chosen = drawn(rows, count, dtype=torch.float32).topk(shape.per_token)
    ids, weights = chosen.indices.to(torch.int32), chosen.values.softmax(1)
    given = (drawn(rows, hidden), ids, weights, w13, w2, "silu")
    cost = experts_cost(shape, rows, distinct=len(ids.unique()), item=drawn.dtype.itemsize)
    twin = NaiveExperts() if shape in DRAWN else TorchExperts()
    return Pair(ours=partial(TritonExperts(), *given), twin=partial(twin, *given), cost=cost, dtype=drawn.dtype)


def experts_cost(shape: Shape, rows: int, *, distinct: int, item: int) -> Cost:
    """Weights of the experts that somebody chose, rows in and out once, and the products of every slot."""
    weights = 3 * shape.expert_size * shape.hidden
    return Cost(
        bytes=float(item * (distinct * weights + 2 * rows * shape.hidden)),
        flops=2.0 * rows * shape.per_token * weights,
    )


def _pair(
    drawn: Drawn, ours: Callable[..., object], twin: Callable[..., object], given: tuple[Any, ...], *, moved: int
) -> Pair:
    return Pair(ours=partial(ours, *given), twin=partial(twin, *given), cost=_bytes(drawn, moved), dtype=drawn.dtype)


def _bytes(drawn: Drawn, elements: int) -> Cost:
    return Cost(bytes=float(elements * drawn.dtype.itemsize))


KERNELS: Mapping[str, Callable[[Drawn, Shape, int], Pair]] = {
    "norm": _norm,
    "add and norm": _add_and_norm,
    "norm and add": _norm_and_add,
    "gate": _gated,
    "turn and store": _turn_and_store,
    "route": _route,
    "blend": _blend,
    "head with search": _select,
    "experts": _experts,
}
_OF_EXPERTS = ("route", "experts")
