"""Running a network over pages by hand: every table, slot and interval is spelled out here.

Nothing of the engine's own packing or attention is used, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from diffulex_core.context import ForwardContext, SoftInputs
from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.protocols import AttentionBackend, DiffusionModel
from diffulex_core.testing.check import CheckFailed
from diffulex_core.testing.subjects import CPU, FamilySubject
from diffulex_core.types import AttentionBatch, RowRun
from diffulex_core.weights import dummy_weights

META = torch.device("meta")
ROWS = 8
"""Rows of a forward are padded to a multiple of this, as the engine pads them."""


@attrs.frozen(kw_only=True, eq=False)
class Fed:
    """Consecutive rows of one sequence in one forward.

    Attributes:
        tokens: input ids.
        start: position of the first.
        ends: for each row, the exclusive end of the key slots that it sees.
        table: physical page of each logical page.
        starts: for each layer kind the first key slot that each row sees; None = what its sliding window leaves.
        slot: logical slot of the first row's K/V; None = its position.
        store: whether the rows' K/V are stored.
        final: whether the rows' K/V will not change again.
        soft: [rows, hidden] embeddings that the rows are fed; None = they are fed their tokens alone.
    """

    tokens: Sequence[int]
    start: int = 0
    ends: Sequence[int]
    table: Sequence[int]
    starts: Sequence[Sequence[int]] | None = None
    slot: int | None = None
    store: bool = True
    final: bool = True
    soft: Tensor | None = None

    @property
    def positions(self) -> range:
        return range(self.start, self.start + len(self.tokens))

    def first_keys(self, kind: int, window: int | None) -> Sequence[int]:
        """The first key slot that each row sees in layers of one kind."""
        if self.starts is not None:
            return self.starts[kind]
        return [0 if window is None else max(0, position - window + 1) for position in self.positions]

    def slots(self, page_size: int) -> list[int]:
        """The physical slot of each row, -1 where nothing is stored."""
        if not self.store:
            return [-1] * len(self.tokens)
        first = self.start if self.slot is None else self.slot
        logical = range(first, first + len(self.tokens))
        return [self.table[at // page_size] * page_size + at % page_size for at in logical]


@attrs.frozen(kw_only=True, eq=False)
class Memory:
    """The pages of all layers: `keys` and `values`, one tensor [pages, page_size, kv_heads, head_dim] for each."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    page_size: int

    @classmethod
    def of(
        cls, network: DiffusionModel, pages: int, page_size: int, *, fill: float = 0.0, dtype: torch.dtype | None = None
    ) -> Memory:
        """Pages of the heads that a network says it has, holding `fill` everywhere."""
        made = [
            tuple(
                torch.full((pages, page_size, layer.num_kv_heads, layer.head_dim), fill, dtype=dtype or torch.float32)
                for layer in network.kv_geometry
            )
            for _ in range(2)
        ]
        return cls(keys=made[0], values=made[1], page_size=page_size)

    def copy(self) -> Memory:
        """The same numbers once more."""
        return attrs.evolve(
            self, keys=tuple(each.clone() for each in self.keys), values=tuple(each.clone() for each in self.values)
        )

    def flat(self, layer: int) -> tuple[Tensor, Tensor]:
        """[slots, kv_heads, head_dim] keys and values of one layer; views."""
        return self.keys[layer].flatten(0, 1), self.values[layer].flatten(0, 1)


class DenseAttention:
    """Attention in double precision, for each interval the plain formula; an `AttentionBackend`.

    A query head `h` reads the key/value head `h // (heads // kv_heads)`. Slots outside of an interval are not touched.
    """

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        """See `AttentionBackend.attend`."""
        out = torch.zeros_like(query)
        rows_of: dict[tuple[int, int, int], list[int]] = {}
        said = (batch.row_sequence.tolist(), batch.key_start.tolist(), batch.key_end.tolist())
        for row, interval in enumerate(zip(*said, strict=True)):
            rows_of.setdefault(interval, []).append(row)
        group = query.shape[1] // key_pages.shape[2]
        for (sequence, start, end), rows in rows_of.items():
            if start >= end:
                continue
            owned = int((batch.page_tables[sequence] >= 0).sum()) * batch.page_size
            if not 0 <= start < end <= owned:
                raise CheckFailed(f"attention is asked for slots [{start}, {end}) of a sequence that has {owned}.")
            slots = torch.arange(start, end)
            pages = batch.page_tables[sequence, slots // batch.page_size]
            keys, values = (
                each[pages, slots % batch.page_size].double().repeat_interleave(group, dim=1)
                for each in (key_pages, value_pages)
            )  # [keys, heads, head_dim]
            scores = torch.einsum("rhd,khd->rhk", query[rows].double(), keys) * scale
            out[rows] = torch.einsum("rhk,khd->rhd", scores.softmax(-1), values).to(query.dtype)
        return out


@attrs.frozen(kw_only=True, eq=False)
class Seen:
    """One call of an attention backend: what was asked, and the stored K/V of all slots at that moment.

    Attributes:
        layer: index of the layer whose pages were given; -1 for pages of no layer.
        query: [rows, heads, head_dim].
        keys, values: [slots, kv_heads, head_dim].
        batch: the visibility that was given.
        scale: factor on the scores.
    """

    layer: int
    query: Tensor
    keys: Tensor
    values: Tensor
    batch: AttentionBatch
    scale: float


class Spy:
    """An attention backend that notes what it is asked, in order."""

    def __init__(self, memory: Memory) -> None:
        self.calls: list[Seen] = []
        self._memory = memory
        self._inner = DenseAttention()

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        """See `AttentionBackend.attend`."""
        layers = [layer for layer, pages in enumerate(self._memory.keys) if pages.data_ptr() == key_pages.data_ptr()]
        self.calls.append(
            Seen(
                layer=layers[0] if layers else -1,
                query=query.clone(),
                keys=key_pages.flatten(0, 1).clone(),
                values=value_pages.flatten(0, 1).clone(),
                batch=batch,
                scale=scale,
            )
        )
        return self._inner.attend(query, key_pages, value_pages, batch, scale)


def network_of(
    subject: FamilySubject, *, tp: Communicator = ALONE, dtype: torch.dtype = torch.float32, seed: int = 0
) -> DiffusionModel:
    """One process's share of the family's network, built as engines build it, with seeded random weights."""
    network = subject.build(tp=tp, dtype=dtype, device=META)
    dummy_weights(network, device=CPU, seed=seed)
    return network


def context(
    network: DiffusionModel, memory: Memory, sequences: Sequence[Fed], *, backend: AttentionBackend, padding: int
) -> ForwardContext:
    """What a network is told besides ids and positions."""
    count = sum(len(fed.tokens) for fed in sequences)
    slots = [slot for fed in sequences for slot in fed.slots(memory.page_size)]
    final = [fed.final for fed in sequences for _ in fed.tokens]
    return ForwardContext(
        slots=torch.tensor(slots + [-1] * padding),
        key_pages=memory.keys,
        value_pages=memory.values,
        batches=tuple(
            _batch(sequences, kind, window, memory.page_size, count, padding)
            for kind, window in enumerate(network.windows)
        ),
        backend=backend,
        final=torch.tensor(final + [False] * padding),
        soft=_soft(sequences),
    )


def run(
    network: DiffusionModel,
    memory: Memory,
    *sequences: Fed,
    backend: AttentionBackend | None = None,
    multiple: int = ROWS,
) -> list[Tensor]:
    """One forward, as engines call it; the logits [rows, columns] of each sequence."""
    hidden = hidden_rows(network, memory, *sequences, backend=backend, multiple=multiple)
    with torch.inference_mode():
        logits = network.logits(hidden)
    lengths = [len(fed.tokens) for fed in sequences]
    return list(logits[: sum(lengths)].split(lengths))


def hidden_rows(
    network: DiffusionModel,
    memory: Memory,
    *sequences: Fed,
    backend: AttentionBackend | None = None,
    multiple: int = ROWS,
) -> Tensor:
    """One forward; [rows, hidden], padding rows included."""
    tokens = [token for fed in sequences for token in fed.tokens]
    positions = [position for fed in sequences for position in fed.positions]
    padding = -len(tokens) % multiple
    told = context(network, memory, sequences, backend=backend or DenseAttention(), padding=padding)
    with torch.inference_mode():
        return network(torch.tensor(tokens + [0] * padding), torch.tensor(positions + [0] * padding), told)


def _batch(
    sequences: Sequence[Fed], kind: int, window: int | None, page_size: int, count: int, padding: int
) -> AttentionBatch:
    firsts = [first for fed in sequences for first in fed.first_keys(kind, window)]
    ends = [end for fed in sequences for end in fed.ends]
    owners = [index for index, fed in enumerate(sequences) for _ in fed.tokens]
    assert len(firsts) == len(ends) == count, "every row has one interval"
    runs = list[RowRun]()
    for row, (first, end, owner) in enumerate(zip(firsts, ends, owners, strict=True)):
        last = runs[-1] if runs else None
        if last is not None and (last.sequence, last.key_start, last.key_end) == (owner, first, end):
            runs[-1] = attrs.evolve(last, row_end=row + 1)
        else:
            runs.append(RowRun(row_start=row, row_end=row + 1, sequence=owner, key_start=first, key_end=end))
    width = max(len(fed.table) for fed in sequences)
    return AttentionBatch(
        key_start=torch.tensor(firsts + [0] * padding),
        key_end=torch.tensor(ends + [0] * padding),
        row_sequence=torch.tensor(owners + [0] * padding),
        page_tables=torch.tensor([[*fed.table, *[-1] * (width - len(fed.table))] for fed in sequences]),
        page_size=page_size,
        runs=tuple(runs),
    )


def _soft(sequences: Sequence[Fed]) -> SoftInputs | None:
    rows, parts, offset = list[int](), list[Tensor](), 0
    for fed in sequences:
        if fed.soft is not None:
            rows += range(offset, offset + len(fed.tokens))
            parts.append(fed.soft)
        offset += len(fed.tokens)
    return SoftInputs(rows=torch.tensor(rows), embeddings=torch.cat(parts)) if parts else None
