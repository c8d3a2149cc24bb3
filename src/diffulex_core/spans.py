"""What a request asks for in one step: consecutive rows, what is decided of them and on which terms, and its pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import overload

import attrs
import numpy as np
from numpy.typing import NDArray

from diffulex_core.pattern import IntArray, Phase
from diffulex_core.sampling_params import SamplingParams

BoolArray = NDArray[np.bool_]
"""Flags on the host."""
FloatArray = NDArray[np.floating]
"""Numbers on the host, in any precision."""

CARRIED = -1
"""Stands for the row before the window, whose hidden row the runner keeps (families with shifted logits)."""


@attrs.frozen(kw_only=True, eq=False)
class Terms:
    """How positions are decided.

    Attributes:
        accept_threshold: confidence above which a position is accepted.
        force_one: accept the most confident position of a group when none passes the threshold.
        greedy: take the most probable token, whatever the request's temperature.
        clean_confidence: take confidence from the distribution before temperature and top-p, top-k, min-p.
        measure: what confidence is, in place of what the request's parameters say (`sampling.confidence.MEASURES`, or
            "prob"); None = as they say.
        temperature: of the strategy's own schedule, for samplers that follow one; None = the request's.
        alternatives: so many of the most probable tokens come back with their probabilities.
        penalty: by how much the logit of a discouraged token is lowered.
        watched_raw: the probability of a watched token is of the network's own distribution: nothing is lowered, and
            the tokens that are never chosen have their share.
    """

    accept_threshold: float
    force_one: bool
    greedy: bool = False
    clean_confidence: bool = False
    measure: str | None = None
    temperature: float | None = None
    alternatives: int = 0
    penalty: float = 0.0
    watched_raw: bool = False


@attrs.frozen(kw_only=True, eq=False)
class CodedTerms(Sequence[Terms]):
    """The terms of many groups, which have a few in common.

    Attributes:
        kinds: different ones.
        codes: [groups] index into `kinds`.
    """

    kinds: Sequence[Terms]
    codes: IntArray

    @classmethod
    def of(cls, terms: Sequence[Terms]) -> CodedTerms:
        """The same terms, coded."""
        if isinstance(terms, CodedTerms):
            return terms
        codes = {each: code for code, each in enumerate(dict.fromkeys(terms))}
        return cls(kinds=[*codes], codes=np.array([codes[each] for each in terms], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> Terms: ...
    @overload
    def __getitem__(self, index: slice) -> CodedTerms: ...
    def __getitem__(self, index: int | slice) -> Terms | CodedTerms:
        if isinstance(index, slice):
            return CodedTerms(kinds=self.kinds, codes=self.codes[index])
        return self.kinds[int(self.codes[index])]


@attrs.frozen(kw_only=True, eq=False)
class SampleGroup(Terms):
    """The positions of one block that may be decided in this step, and the terms.

    Attributes:
        block: index of the block.
        positions: [n] absolute positions to decide, ascending.
        rows: [n] index, within the window, of the row whose logits predict each position; `CARRIED` where that row
            was fed in an earlier step.
        discouraged: [n] token whose logit is lowered by `penalty` in each row, -1 for none; None = no token.
        watched: [n] token whose probability comes back for each row; None = none.
    """

    block: int
    positions: IntArray
    rows: IntArray
    discouraged: IntArray | None = None
    watched: IntArray | None = None


@attrs.frozen(kw_only=True, eq=False)
class SampleGroups(Sequence[SampleGroup]):
    """The groups of a span, column by column, so that a step touches arrays and not every group of every request.

    Attributes:
        blocks: [groups] index of each one's block.
        sizes: [groups] positions of each.
        positions, rows, discouraged, watched: [n] those of all groups, one after the other.
        terms: [groups] on which each is decided.
    """

    blocks: Sequence[int]
    sizes: Sequence[int]
    positions: IntArray
    rows: IntArray
    terms: Sequence[Terms]
    discouraged: IntArray | None = None
    watched: IntArray | None = None

    @classmethod
    def of(cls, groups: Iterable[SampleGroup]) -> SampleGroups:
        """The columns of some groups."""
        each = tuple(groups)
        sizes = tuple(len(group.positions) for group in each)
        return cls(
            blocks=tuple(group.block for group in each),
            sizes=sizes,
            positions=_joined([group.positions for group in each]),
            rows=_joined([group.rows for group in each]),
            terms=each,
            discouraged=_tokens([group.discouraged for group in each], sizes),
            watched=_tokens([group.watched for group in each], sizes),
        )

    @classmethod
    def joined(cls, parts: Sequence[SampleGroups]) -> SampleGroups:
        """Those of all parts, one part after another."""
        sizes = [len(part.positions) for part in parts]
        return cls(
            blocks=[*chain.from_iterable(part.blocks for part in parts)],
            sizes=[*chain.from_iterable(part.sizes for part in parts)],
            positions=_joined([part.positions for part in parts]),
            rows=_joined([part.rows for part in parts]),
            terms=[*chain.from_iterable(part.terms for part in parts)],
            discouraged=_tokens([part.discouraged for part in parts], sizes),
            watched=_tokens([part.watched for part in parts], sizes),
        )

    def part(self, groups: slice, positions: slice) -> SampleGroups:
        """Some groups that follow one another, and their positions."""
        return SampleGroups(
            blocks=self.blocks[groups],
            sizes=self.sizes[groups],
            positions=self.positions[positions],
            rows=self.rows[positions],
            terms=self.terms[groups],
            discouraged=None if self.discouraged is None else self.discouraged[positions],
            watched=None if self.watched is None else self.watched[positions],
        )

    def __len__(self) -> int:
        return len(self.blocks)

    @overload
    def __getitem__(self, index: int) -> SampleGroup: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SampleGroup]: ...
    def __getitem__(self, index: int | slice) -> SampleGroup | Sequence[SampleGroup]:
        if isinstance(index, slice):
            return tuple(self[each] for each in range(*index.indices(len(self))))
        index = range(len(self))[index]
        terms, begin = self.terms[index], sum(self.sizes[:index])
        if isinstance(terms, SampleGroup):  # the columns were made of groups
            return terms
        rows = slice(begin, begin + self.sizes[index])
        return SampleGroup(
            block=self.blocks[index],
            positions=self.positions[rows],
            rows=self.rows[rows],
            discouraged=None if self.discouraged is None else self.discouraged[rows],
            watched=None if self.watched is None else self.watched[rows],
            **attrs.asdict(terms, recurse=False),
        )


def _joined(parts: Sequence[IntArray]) -> IntArray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _tokens(parts: Sequence[IntArray | None], sizes: Sequence[int]) -> IntArray | None:
    """[n] a token for each position, -1 where its group has none; None where no group has any."""
    if all(part is None for part in parts):
        return None
    return np.concatenate([np.full(n, -1) if part is None else part for part, n in zip(parts, sizes, strict=True)])


def _columns(groups: Iterable[SampleGroup]) -> SampleGroups:
    return groups if isinstance(groups, SampleGroups) else SampleGroups.of(groups)


@attrs.frozen(kw_only=True, eq=False)
class Guidance:
    """Classifier-free guidance: a second reading of a span, whose logits are joined with the first's.

    Attributes:
        tokens: [rows] input ids of the request's second sequence, at the positions of the span's rows.
        scale: w in `u + (w + 1) * (c - u)`, where c are the logits of the span's rows and u those of the second.
    """

    tokens: IntArray
    scale: float


@attrs.frozen(kw_only=True, eq=False)
class Blends:
    """Positions that are fed weighted sums of embeddings in place of their token's (token merge).

    Attributes:
        positions: [n] absolute positions, ascending.
        ids: [n, k] token ids.
        weights: [n, k] float32 weight of each embedding; 0 where a position has fewer than k.
        match_norm: scale each sum to the weighted sum of the norms.
    """

    positions: IntArray
    ids: IntArray
    weights: FloatArray
    match_norm: bool


@attrs.frozen(kw_only=True)
class Refresh:
    """Which K/V of a full pass are worth keeping: a cache policy chooses among the rows outside a region.

    Attributes:
        start, end: the region, by row of the span. Its queries tell what the others are worth.
        keep: tokens that are kept of those outside.
        per_head: every KV head keeps tokens of its own; otherwise all heads keep the same.
        pool: width of the window whose highest score counts for a token; odd.
    """

    start: int
    end: int
    keep: int
    per_head: bool
    pool: int


@attrs.frozen(kw_only=True, eq=False)
class Span:
    """What a request wants to feed next: consecutive positions `[start, start + len(tokens))`.

    Attributes:
        start: first position.
        tokens: [rows] int64 input ids.
        catch_up: leading rows whose tokens are already final (prompt, or committed blocks after a preemption).
        store_from: rows of positions below this store nothing: they read the K/V that are in the pages.
        store_until: K/V of all positions below this are final once the span was executed.
        keep: position whose hidden row the runner keeps for a later step, in place of the one it has; None = no change.
        visible_end: keys below this may be read although the rows end earlier: earlier spans stored them. None = the
            keys end with the rows.
        phase: visibility rule of the rows.
        blends: rows that are fed blended embeddings; None = every row is fed its token's.
        groups: what is sampled, given as columns or group by group; empty for a pure prefill chunk.
        advances: whether executing the span is a step of the request's block machine.
        guidance: the same positions in the request's second sequence; None = they are fed once.
        recall: the sampled rows are fed, beside their tokens, what the runner keeps of the step that sampled them last.
        remember: the runner keeps what this step believes of the sampled rows (`SelfConditioned`), in place of what it
            has. It keeps it through preemption, until the request ends.
        refresh: afterwards the sequence's slots `[0, keep)` hold the K/V that the cache policy keeps, in place of those
            of the first positions. None = K/V stay where they were stored.
        packed: the sequence's slots `[0, packed)` hold kept K/V. Those of the rows that are stored go right behind
            them, and every row sees all of both. None = slots are positions.
        held: slots that are still needed once the step is over; the pages behind them are given back. Such a span waits
            when pages run out, unless its request is the oldest. None = all are needed.
    """

    start: int
    tokens: IntArray
    catch_up: int
    store_until: int
    phase: Phase
    groups: SampleGroups = attrs.field(converter=_columns)
    advances: bool
    store_from: int = 0
    keep: int | None = None
    visible_end: int | None = None
    blends: Blends | None = None
    guidance: Guidance | None = None
    recall: bool = False
    remember: bool = False
    refresh: Refresh | None = None
    packed: int | None = None
    held: int | None = None

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def slots(self) -> int:
        """Slots of a sequence that executing it needs."""
        return self.end if self.packed is None else self.packed + self.end - self.first_stored

    @property
    def first_stored(self) -> int:
        """Position of the first row whose K/V are stored."""
        return max(self.start, self.store_from)

    @property
    def plain(self) -> bool:
        """Whether columns of spans (`Spans`) have a place for all that it says."""
        return (
            self.visible_end is None
            and self.guidance is None
            and self.refresh is None
            and self.packed is None
            and self.held is None
        )

    @property
    def full_pass(self) -> bool:
        """Whether it feeds a whole canvas for the sake of a few positions, and needs pages for this step only."""
        return self.held is not None and self.packed is None

    @property
    def rows(self) -> int:
        """Rows that are fed, those of the second sequence included."""
        return len(self.tokens) * (1 if self.guidance is None else 2)


@attrs.frozen(kw_only=True, eq=False)
class Window:
    """A span with the pages it may use: one sequence's part of a step.

    Attributes:
        request_id: owner.
        span: the rows.
        prompt_len: length of the request's prompt, for visibility.
        page_table: [pages] int64 physical page of each logical page; covers `span.slots` and `span.visible_end`.
        params: the request's sampling parameters.
        draw: counter of sampling steps, so that every draw of a request is a pure function of (seed, draw, position).
        second_table: the pages of the request's second sequence; None where the span has no guidance.
        preemptions: times the request lost its pages before this step.
    """

    request_id: int
    span: Span
    prompt_len: int
    page_table: IntArray
    params: SamplingParams
    draw: int
    second_table: IntArray | None = None
    preemptions: int = 0
