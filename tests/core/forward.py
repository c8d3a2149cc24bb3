"""Running a network over paged memory by hand: every page table, slot and interval is spelled out here.

It shares nothing with the engine's own packing, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.context import ForwardContext
from diffulex_core.kv_store import KVStore
from diffulex_core.protocols import AttentionBackend, DiffusionModel
from diffulex_core.types import AttentionBatch, KVGeometry, RowRun

CPU = torch.device("cpu")


@attrs.frozen(kw_only=True, eq=False)
class Rows:
    """Consecutive rows of one sequence.

    Attributes:
        tokens: input ids.
        start: position of the first.
        key_end: exclusive end of the keys that each row sees.
        table: physical page of each logical page.
        key_start: first key that each row sees; None = 0 for all.
        store: whether the rows' K/V are written.
    """

    tokens: Sequence[int]
    start: int = 0
    key_end: Sequence[int]
    table: Sequence[int]
    key_start: Sequence[int] | None = None
    store: bool = True

    @property
    def first_keys(self) -> list[int]:
        return [0] * len(self.tokens) if self.key_start is None else list(self.key_start)


def all_visible(length: int) -> list[int]:
    """Every row sees the whole sequence."""
    return [length] * length


def block_causal(length: int, block: int, *, start: int = 0) -> list[int]:
    """Rows `start ..` of a sequence of `length` tokens see to the end of their own block."""
    return [min((position // block + 1) * block, length) for position in range(start, length)]


def pages(geometry: Sequence[KVGeometry], num_pages: int, page_size: int, *, fill: float = 0.0) -> KVStore:
    """fp32 pages on the CPU that hold `fill` everywhere."""
    store = KVStore.allocate(geometry, num_pages, page_size, torch.float32, CPU)
    for tensor in (*store.key_pages, *store.value_pages):
        tensor.fill_(fill)
    return store


def attention_batch(sequences: Sequence[Rows], page_size: int, *, multiple: int = 1) -> AttentionBatch:
    """The visibility of a forward over these sequences, padded to a multiple of some number of rows."""
    key_start, key_end, owner, runs = list[int](), list[int](), list[int](), list[RowRun]()
    for index, rows in enumerate(sequences):
        for first, end in zip(rows.first_keys, rows.key_end, strict=True):
            row = len(key_end)
            last = runs[-1] if runs else None
            if last and (last.sequence, last.key_start, last.key_end) == (index, first, end):
                runs[-1] = attrs.evolve(last, row_end=row + 1)
            else:
                runs.append(RowRun(row_start=row, row_end=row + 1, sequence=index, key_start=first, key_end=end))
            key_start, key_end, owner = [*key_start, first], [*key_end, end], [*owner, index]
    padding = [0] * (-len(key_end) % multiple)
    width = max(len(rows.table) for rows in sequences)
    tables = [[*rows.table, *[-1] * (width - len(rows.table))] for rows in sequences]
    return AttentionBatch(
        key_start=torch.tensor(key_start + padding),
        key_end=torch.tensor(key_end + padding),
        row_sequence=torch.tensor(owner + padding),
        page_tables=torch.tensor(tables),
        page_size=page_size,
        runs=tuple(runs),
    )


def slot_mapping(sequences: Sequence[Rows], page_size: int, *, multiple: int = 1) -> Tensor:
    """Physical slot of each row, -1 for rows that store nothing and for padding."""
    slots = [
        rows.table[position // page_size] * page_size + position % page_size if rows.store else -1
        for rows in sequences
        for position in range(rows.start, rows.start + len(rows.tokens))
    ]
    return torch.tensor(slots + [-1] * (-len(slots) % multiple))


def run_model(
    model: DiffusionModel,
    sequences: Sequence[Rows],
    store: KVStore,
    *,
    backend: AttentionBackend | None = None,
    multiple: int = 8,
) -> list[Tensor]:
    """One forward; returns the logits [rows, vocab] of each sequence. All layers use the same intervals."""
    tokens = [token for rows in sequences for token in rows.tokens]
    positions = [rows.start + index for rows in sequences for index in range(len(rows.tokens))]
    padding = [0] * (-len(tokens) % multiple)
    page_size = store.key_pages[0].shape[1]
    batch = attention_batch(sequences, page_size, multiple=multiple)
    ctx = ForwardContext(
        slots=slot_mapping(sequences, page_size, multiple=multiple),
        key_pages=store.key_pages,
        value_pages=store.value_pages,
        batches=(batch,) * len(model.windows),
        backend=backend or TorchCPU(),
    )
    with torch.inference_mode():
        hidden = model(torch.tensor(tokens + padding), torch.tensor(positions + padding), ctx)
        logits = model.logits(hidden)[: len(tokens)]
    return list(logits.split([len(rows.tokens) for rows in sequences]))
