"""Attention problems that other kernels can express, too, and those kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec

import attrs
import torch
from benchmarks.on_gpu.compare import Pair
from benchmarks.on_gpu.timing import Cost
from torch import Tensor
from torch.nn import functional

from diffulex_core.attention.reference import TorchReference
from diffulex_core.attention.triton.backend import PagedTriton
from diffulex_core.types import AttentionBatch, RowRun

PAGE = 32


@attrs.frozen(kw_only=True)
class Heads:
    """The attention of a model's layer."""

    name: str
    query: int
    kv: int
    dim: int


HEADS = (
    Heads(name="llada-8b", query=32, kv=32, dim=128),
    Heads(name="llada2-mini", query=16, kv=4, dim=128),
    Heads(name="gemma-26b sliding", query=16, kv=8, dim=256),
)


@attrs.frozen(kw_only=True)
class Task:
    """Sequences that are alike: the last `rows` of `keys` positions ask.

    Attributes:
        block: every row sees to the end of its block of so many; 0 = every row sees all keys.
    """

    sequences: int
    rows: int
    keys: int
    block: int = 0

    @property
    def name(self) -> str:
        kind = f"block-causal {self.block}" if self.block else "full"
        return f"{self.sequences} x {self.rows} rows over {self.keys} keys, {kind}"

    def ends(self) -> list[int]:
        """Exclusive end of each row's interval, which begins at 0."""
        first = self.keys - self.rows
        if not self.block:
            return [self.keys] * self.rows
        return [min(self.keys, (at // self.block + 1) * self.block) for at in range(first, self.keys)]


TASKS = (
    Task(sequences=1, rows=32, keys=1024),
    Task(sequences=1, rows=32, keys=8192),
    Task(sequences=8, rows=32, keys=1024),
    Task(sequences=64, rows=32, keys=1024),
    Task(sequences=8, rows=128, keys=2048),
    Task(sequences=1, rows=1024, keys=1024),
    Task(sequences=1, rows=4096, keys=4096, block=32),
)
SMALL = Task(sequences=2, rows=6, keys=21, block=4)
"""Small enough for the definition, which looks at each row by itself."""


def cost(heads: Heads, task: Task, item: int) -> Cost:
    """Queries in, results out, every key and value once; two products for every key that a row sees."""
    moved = task.sequences * (2 * task.rows * heads.query + 2 * task.keys * heads.kv) * heads.dim * item
    return Cost(bytes=float(moved), flops=4.0 * task.sequences * sum(task.ends()) * heads.query * heads.dim)


def cases(
    device: torch.device, dtype: torch.dtype, *, heads: tuple[Heads, ...] = HEADS, tasks: tuple[Task, ...] = TASKS
) -> Mapping[str, Callable[[], Pair]]:
    """Every task for every kind of heads, by name; a pair is made when it is called for."""
    tried = (SMALL, *tasks)
    return {f"{each.name}, {task.name}": partial(make, device, dtype, each, task) for each in heads for task in tried}


def make(device: torch.device, dtype: torch.dtype, heads: Heads, task: Task) -> Pair:
    """One problem in scattered pages, and the same keys and values side by side for the others."""
    generator = torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    count, rows, keys = task.sequences, task.rows, task.keys
    per_sequence = -(-keys // PAGE)
    tables = torch.randperm(count * per_sequence, generator=generator, device=device).view(count, per_sequence)
    stores = [drawn(count * per_sequence, PAGE, heads.kv, heads.dim) for _ in "kv"]
    side_by_side = [store[tables].flatten(1, 2)[:, :keys] for store in stores]  # [sequences, keys, kv_heads, head_dim]
    query, scale = drawn(count * rows, heads.query, heads.dim), heads.dim**-0.5
    batch = batch_of(task, tables)
    rivals = _rivals(query.view(count, rows, heads.query, heads.dim), *side_by_side, task=task, scale=scale)
    ours = partial(PagedTriton().attend, query, *stores, batch, scale)
    if task is SMALL:
        twin: Callable[[], object] = partial(TorchReference().attend, query, *stores, batch, scale)
    else:
        wide = [each.float() for each in (query.view(count, rows, heads.query, heads.dim), *side_by_side)]
        twin = partial(_sdpa, *wide, mask=mask_of(task, device), scale=scale)
    return Pair(ours=ours, twin=twin, cost=cost(heads, task, dtype.itemsize), dtype=dtype, rivals=rivals)


def batch_of(task: Task, tables: Tensor) -> AttentionBatch:
    """The intervals as tensors and as runs."""
    device, runs = tables.device, list[RowRun]()
    for sequence in range(task.sequences):
        for at, end in enumerate(task.ends()):
            row = sequence * task.rows + at
            if runs and (runs[-1].sequence, runs[-1].key_end) == (sequence, end):
                runs[-1] = attrs.evolve(runs[-1], row_end=row + 1)
            else:
                runs.append(RowRun(row_start=row, row_end=row + 1, sequence=sequence, key_start=0, key_end=end))
    ends = torch.tensor(task.ends() * task.sequences, device=device)
    return AttentionBatch(
        key_start=torch.zeros_like(ends),
        key_end=ends,
        row_sequence=torch.arange(task.sequences, device=device).repeat_interleave(task.rows),
        page_tables=tables,
        page_size=PAGE,
        runs=tuple(runs),
    )


def mask_of(task: Task, device: torch.device) -> Tensor | None:
    """[rows, keys] bool, what each row sees; None = everything."""
    if not task.block:
        return None
    return torch.arange(task.keys, device=device)[None] < torch.tensor(task.ends(), device=device)[:, None]


def _sdpa(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, scale: float) -> Tensor:
    """[sequences, rows, heads, head_dim] -> [sequences * rows, heads, head_dim]."""
    heads_first = [each.transpose(1, 2) for each in (query, key, value)]
    out = functional.scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=scale, enable_gqa=True)
    return out.transpose(1, 2).flatten(0, 1)


def _rivals(
    query: Tensor, key: Tensor, value: Tensor, *, task: Task, scale: float
) -> Mapping[str, Callable[[], object]]:
    """Other kernels for the same work. They read keys and values side by side, which is easier than pages."""
    rivals: dict[str, Callable[[], object]] = {
        "torch SDPA": partial(_sdpa, query, key, value, mask=mask_of(task, query.device), scale=scale)
    }
    if query.device.type != "cuda":
        return rivals
    if find_spec("flash_attn") is not None and not task.block:
        from flash_attn import flash_attn_func

        rivals["flash-attn"] = partial(flash_attn_func, query, key, value, softmax_scale=scale)
    if task is not SMALL:
        rivals["FlexAttention"] = _flex(query, key, value, task=task, scale=scale)
    return rivals


def _flex(query: Tensor, key: Tensor, value: Tensor, *, task: Task, scale: float) -> Callable[[], object]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    first, block = task.keys - task.rows, task.block
    mask = None
    if block:
        mask = create_block_mask(
            lambda _, __, row, column: column < ((row + first) // block + 1) * block,
            None, None, task.rows, task.keys, device=query.device,
        )  # fmt: skip
    torch.compiler.reset()  # after a few shapes torch would give up and run it uncompiled
    compiled = torch.compile(flex_attention, dynamic=False)
    heads_first = [each.transpose(1, 2).contiguous() for each in (query, key, value)]
    return partial(compiled, *heads_first, block_mask=mask, scale=scale, enable_gqa=True)
