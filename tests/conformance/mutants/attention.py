"""Broken subjects for the checks of `diffulex_core.testing.checks.attention`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffulex_core.attention.case import AttentionCase
from diffulex_core.testing.check import Check
from diffulex_core.testing.checks import attention as checks
from diffulex_core.testing.subjects import AttentionSubject
from diffulex_core.types import AttentionBatch
from tests.conformance.loop_attention import LoopAttention, probe
from tests.conformance.mutant import Mutant


class SeesOneKeyTooMany(LoopAttention):
    def end(self, batch: AttentionBatch, row: int) -> int:
        end = super().end(batch, row)
        return end + 1 if end else 0


class MissesTheLastKey(LoopAttention):
    def end(self, batch: AttentionBatch, row: int) -> int:
        return max(super().end(batch, row) - 1, min(super().end(batch, row), super().start(batch, row) + 1))


class SeesOneKeyBeforeTheWindow(LoopAttention):
    def start(self, batch: AttentionBatch, row: int) -> int:
        start, end = super().start(batch, row), super().end(batch, row)
        return max(0, start - 1) if start < end else start


class IgnoresTheWindow(LoopAttention):
    def start(self, batch: AttentionBatch, row: int) -> int:
        return 0 if super().start(batch, row) < super().end(batch, row) else super().start(batch, row)


class OneIntervalForEachSequence(LoopAttention):
    def end(self, batch: AttentionBatch, row: int) -> int:
        rows = batch.row_sequence == batch.row_sequence[row]
        return int(batch.key_end[rows].max()) if super().end(batch, row) else 0


class TakesHeadsInTurn(LoopAttention):
    def kv_heads(self, heads: int, kv_heads: int) -> Tensor:
        return torch.arange(heads) % kv_heads


class ReadsTheFirstSequence(LoopAttention):
    def table(self, batch: AttentionBatch, row: int) -> Tensor:
        return batch.page_tables[0]


class PagesOf16(LoopAttention):
    def page_size(self, batch: AttentionBatch) -> int:
        return 16 if batch.page_size > 4 else batch.page_size


class IgnoresTheScale(LoopAttention):
    def row(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        return super().row(query, keys, values, query.shape[-1] ** -0.5)


class SwapsKeysAndValues(LoopAttention):
    def row(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        return super().row(query, values, keys, scale)


class ReturnsFloat32(LoopAttention):
    def output(self, query: Tensor) -> Tensor:
        return torch.zeros(query.shape)


class WrongFromHeadDim128(LoopAttention):
    def row(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        out = super().row(query, keys, values, scale)
        out[:, 64:] = 0
        return out


class WrongFromHeadDim256(LoopAttention):
    """Has registers for 128 numbers of a head."""

    def row(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        return super().row(query[:, :128], keys[..., :128], values, scale)


class WrongFrom32Heads(LoopAttention):
    def row(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        out = super().row(query, keys, values, scale)
        out[32:] = 0
        return out


class LosesTheRestOfItsTiles(LoopAttention):
    """Computes tiles of 64 rows, and what is left of a small step."""

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        out = super().attend(query, key_pages, value_pages, batch, scale)
        if len(query) > 64:
            out[len(query) // 64 * 64 :] = 0
        return out


class TablesOf32Sequences(LoopAttention):
    def table(self, batch: AttentionBatch, row: int) -> Tensor:
        return batch.page_tables[batch.row_sequence[row].clamp(max=31)]


class PageNumbersAreBytes(LoopAttention):
    def read(self, pages: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
        return pages[where[0] % 256, where[1]]


class MergesPartsWithoutMaximum(LoopAttention):
    """Splits rows of more than 512 keys, and weighs each part by its sum of exponentials below its own maximum."""

    def row(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        parts, sums = list[Tensor](), list[Tensor]()
        for begin in range(0, len(keys), 512):
            part = slice(begin, begin + 512)
            scores = torch.einsum("hd,khd->hk", query.float(), keys[part].float()) * scale
            parts.append(super().row(query, keys[part], values[part], scale))
            sums.append((scores - scores.amax(dim=1, keepdim=True)).exp().sum(dim=1, keepdim=True))
        return sum(part * of for part, of in zip(parts, sums, strict=True)) / sum(sums)


class EmptyRowsAreNaN(LoopAttention):
    def empty(self, out: Tensor, row: int) -> None:
        out[row] = torch.nan


class EmptyRowsAreNotWritten(LoopAttention):
    def output(self, query: Tensor) -> Tensor:
        return query.clone()


class ReadsAllPages(LoopAttention):
    """Masks what it must not see after it has multiplied it."""

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        out = super().attend(query, key_pages, value_pages, batch, scale)
        for row in range(len(query)):
            everything = value_pages[self.table(batch, row)].float().sum()
            out[row] += (0 * everything).to(out.dtype)
        return out


class ReadsTheOwnTailOnly(LoopAttention):
    """Spoilt by what stands behind the last slot on its page."""

    def read(self, pages: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
        return pages[where] + 0 * pages[where[0][-1], -1]


class PrefersLowPages(LoopAttention):
    def read(self, pages: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
        return pages[where] * (1 + 1e-6 * where[0][:, None, None])


class AccumulatesInHalf(LoopAttention):
    def row(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        scores = torch.einsum("hd,khd->hk", query.float(), keys.float()) * scale
        weights = scores.softmax(dim=1).to(torch.bfloat16)
        total = torch.zeros(values.shape[1:], dtype=torch.bfloat16)
        if query.dtype == torch.float32:
            return super().row(query, keys, values, scale)
        for weight, value in zip(weights.T, values.to(torch.bfloat16), strict=True):
            total += weight[:, None] * value
        return total


class HasNoMaximum(LoopAttention):
    def row(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        weights = (torch.einsum("hd,khd->hk", query.float(), keys.float()) * scale).exp()
        return torch.einsum("hk,khd->hd", weights / weights.sum(dim=1, keepdim=True), values.float())


class ScalesTheQueryInPlace(LoopAttention):
    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        out = super().attend(query, key_pages, value_pages, batch, scale)
        query.mul_(scale)
        return out


class ClearsWhatItMasks(LoopAttention):
    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        batch.page_tables.clamp_(min=0)
        return super().attend(query, key_pages, value_pages, batch, scale)


class KeepsItsIntervals(LoopAttention):
    """Remembers the key intervals of batches of one size."""

    def __init__(self) -> None:
        self._ends: dict[int, Tensor] = {}

    def end(self, batch: AttentionBatch, row: int) -> int:
        return int(self._ends.setdefault(len(batch.key_end), batch.key_end.clone())[row])


def one_buffer() -> Callable[[], LoopAttention]:
    """Backends that all write into one tensor."""
    buffer = torch.zeros(100_000)

    class OneBuffer(LoopAttention):
        def output(self, query: Tensor) -> Tensor:
            return buffer.to(query.dtype)[: query.numel()].view(query.shape).zero_()

    return OneBuffer


class SumsInBatchOrder(LoopAttention):
    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        out = super().attend(query, key_pages, value_pages, batch, scale)
        return (out + len(query) * 1000) - len(query) * 1000


def accepts_uneven_heads(case: AttentionCase) -> list[str]:
    return []


def says_no(case: AttentionCase) -> Any:
    return case.head_dim == 16


def gives_no_reason(case: AttentionCase) -> list[str]:
    return [""] if case.head_problems() else []


def raises(case: AttentionCase) -> list[str]:
    if case.device_type != "cpu":
        raise RuntimeError("no such device")
    return case.head_problems()


def _mutant(check: Check[AttentionSubject], what: str, factory: Any, probing: Any = probe) -> Mutant:
    return Mutant(name=what, check=check, subject=lambda: AttentionSubject(name=what, factory=factory, probe=probing))


def _sharing(check: Check[AttentionSubject], what: str, make: Callable[[], Any]) -> Mutant:
    return Mutant(name=what, check=check, subject=lambda: AttentionSubject(name=what, factory=make(), probe=probe))


MUTANTS: tuple[Mutant, ...] = (
    _mutant(checks.check_attention_probe_gives_reasons, "accepts uneven heads", LoopAttention, accepts_uneven_heads),
    _mutant(checks.check_attention_probe_gives_reasons, "answers yes or no", LoopAttention, says_no),
    _mutant(checks.check_attention_probe_gives_reasons, "gives an empty reason", LoopAttention, gives_no_reason),
    _mutant(checks.check_attention_probe_gives_reasons, "raises instead of refusing", LoopAttention, raises),
    *(
        _mutant(checks.check_attention_serves_what_its_probe_accepts, what, backend)
        for what, backend in (
            ("sees one key too many", SeesOneKeyTooMany),
            ("misses the last key", MissesTheLastKey),
            ("sees one key before the window", SeesOneKeyBeforeTheWindow),
            ("ignores the window", IgnoresTheWindow),
            ("takes one interval for each sequence", OneIntervalForEachSequence),
            ("maps query heads in turn", TakesHeadsInTurn),
            ("reads the first sequence's pages", ReadsTheFirstSequence),
            ("believes that larger pages have 16 slots", PagesOf16),
            ("ignores the scale", IgnoresTheScale),
            ("swaps keys and values", SwapsKeysAndValues),
            ("returns float32", ReturnsFloat32),
            ("forgets dimensions above 64", WrongFromHeadDim128),
            ("scores the first 128 dimensions alone", WrongFromHeadDim256),
            ("forgets heads above 32", WrongFrom32Heads),
        )
    ),
    *(
        _mutant(checks.check_attention_serves_large_steps, what, backend)
        for what, backend in (
            ("loses the rest of its tiles", LosesTheRestOfItsTiles),
            ("has tables of 32 sequences", TablesOf32Sequences),
            ("keeps page numbers in bytes", PageNumbersAreBytes),
            ("merges parts without a maximum", MergesPartsWithoutMaximum),
        )
    ),
    _mutant(checks.check_attention_rows_without_keys_are_zero, "empty rows are NaN", EmptyRowsAreNaN),
    _mutant(checks.check_attention_rows_without_keys_are_zero, "empty rows are not written", EmptyRowsAreNotWritten),
    _mutant(checks.check_attention_reads_its_own_slots_only, "reads all pages, and page -1", ReadsAllPages),
    _mutant(checks.check_attention_reads_its_own_slots_only, "reads whole pages", ReadsTheOwnTailOnly),
    _mutant(checks.check_attention_page_numbers_do_not_matter, "page numbers leak", PrefersLowPages),
    _mutant(checks.check_attention_keeps_precision, "accumulates in half precision", AccumulatesInHalf),
    _mutant(checks.check_attention_keeps_precision, "exponentials overflow", HasNoMaximum),
    _mutant(checks.check_attention_leaves_its_arguments_alone, "scales the query in place", ScalesTheQueryInPlace),
    _mutant(checks.check_attention_leaves_its_arguments_alone, "writes into page tables", ClearsWhatItMasks),
    _mutant(checks.check_attention_keeps_nothing_between_calls, "keeps its intervals", KeepsItsIntervals),
    _sharing(checks.check_attention_keeps_nothing_between_calls, "backends share a buffer", one_buffer),
    _mutant(checks.check_attention_batch_mates_change_no_bit, "rounds by batch size", SumsInBatchOrder),
)
