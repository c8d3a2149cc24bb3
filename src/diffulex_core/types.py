"""The frozen values that travel between request, scheduler, runner, sampler and attention in one step."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal, overload

import attrs
import numpy as np
from numpy.typing import NDArray

from diffulex_core.pattern import IntArray, Phase
from diffulex_core.profiling.stages import StageSeconds
from diffulex_core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

BoolArray = NDArray[np.bool_]
"""Flags on the host."""
FloatArray = NDArray[np.floating]
"""Numbers on the host, in any precision."""
HowRun = Literal["eager", "captured", "replayed"]
"""How the network ran in a step: as it is, captured for steps of this shape (and replayed), or replayed."""


class CompletionReason(enum.StrEnum):
    """Why a request ended."""

    STOP_EOS = "stop_eos"
    STOP_TOKEN = "stop_token"
    STOP_STRING = "stop_string"
    LENGTH_TOKENS = "length_tokens"
    LENGTH_CONTEXT = "length_context"
    NFE_LIMIT = "nfe_limit"
    REPETITION = "repetition"
    ABORTED = "aborted"
    ERROR = "error"


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


@attrs.frozen(kw_only=True, eq=False)
class Alternatives:
    """The most probable tokens of some positions, most probable first, equals from the highest id down.

    Attributes:
        tokens: [n, k] int64.
        probabilities: [n, k] float32, of the distribution before temperature and top-p, top-k, min-p.
    """

    tokens: IntArray
    probabilities: FloatArray


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


@attrs.frozen(kw_only=True, eq=False)
class StepPlan:
    """Everything the runner executes in one forward: the ragged rows of all planned requests.

    Attributes:
        step: counts plans.
        windows: one for each planned request.
        ended: ids of requests that ended since the previous plan, so that the runner keeps nothing for them.
    """

    step: int
    windows: tuple[Window, ...]
    ended: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Number of input rows, padding excluded."""
        return sum(window.span.rows for window in self.windows)


@attrs.frozen(kw_only=True, eq=False)
class LogProbabilities:
    """Log probabilities of some positions, of the distribution before temperature and top-p, top-k, min-p.

    Attributes:
        chosen: [n] float32, of the token that was chosen.
        tokens: [n, k] the most probable tokens, most probable first, equals from the highest id down.
        most: [n, k] float32, theirs; minus infinity where there are fewer tokens.
    """

    chosen: FloatArray
    tokens: IntArray
    most: FloatArray


@attrs.frozen(kw_only=True, eq=False)
class Decision:
    """What the sampler decided for one window.

    Attributes:
        positions: [n] absolute positions that were sampled, in the order of the window's groups.
        tokens: [n] int64 chosen token of each.
        confidence: [n] float32 in [0, 1]: probability of the token, or the measure that the request chose.
        accepted: [n] bool: the position takes its token now. A request that decides by a rule of its own writes here
            what it took, so that records and streams tell it.
        finite: False when a logits row of the window held NaN or no finite value; nothing is accepted then.
        alternatives: of every position, as many as the window's group that asked for most; None when none did.
        watched: [n] float32 probability of the token that the group watches, 0 where it watches none, of the
            distribution before temperature and top-p, top-k, min-p; None when no group watches.
        watched_log: [n] float64 natural logarithm of `watched`, also where that is too small for a float32.
        logprobs: of every position; None when the request does not ask for them.
    """

    positions: IntArray
    tokens: IntArray
    confidence: FloatArray
    accepted: BoolArray
    finite: bool = True
    alternatives: Alternatives | None = None
    watched: FloatArray | None = None
    watched_log: FloatArray | None = None
    logprobs: LogProbabilities | None = None


@attrs.frozen(kw_only=True, eq=False)
class Canvas:
    """The answer region of a request between two steps.

    Attributes:
        start: position of the first answer token.
        tokens: [n] int64 from `start` through the last running block; undecided ones hold a filler.
        decided: [n] bool.
        committed: leading answer positions whose blocks are stored and final.
        block_size: tokens per block.
        running_blocks: (index, state) of each block in the buffer.
    """

    start: int
    tokens: IntArray
    decided: BoolArray
    committed: int
    block_size: int
    running_blocks: tuple[tuple[int, str], ...]


@attrs.frozen(kw_only=True, eq=False)
class StepOutput:
    """The runner's answer to a plan: one decision for each window, in plan order, and what was computed.

    Attributes:
        decisions: one for each window of the plan.
        head_rows: rows that went through the language-model head.
        stages: how long the stages took; None where the runner does not say.
        how: how the network ran.
    """

    decisions: tuple[Decision, ...]
    head_rows: int
    stages: StageSeconds | None = None
    how: HowRun = "eager"


@attrs.frozen(kw_only=True, eq=False)
class Questions:
    """What the groups of a sampler call ask for besides a token and its confidence, row by row.

    Attributes:
        most: alternatives that come back for each row.
        discouraged: [rows] token whose logit is lowered, -1 for none.
        penalty: [rows] float32, by how much.
        watched: [rows] token whose probability comes back, -1 for none.
        raw: [rows] bool, whether the row is answered from the network's own distribution; None = nowhere.
    """

    most: int
    discouraged: IntArray
    penalty: FloatArray
    watched: IntArray
    raw: BoolArray | None = None

    def part(self, rows: slice | IntArray) -> Questions:
        """Those of some of the rows."""
        return attrs.evolve(
            self,
            discouraged=self.discouraged[rows],
            penalty=self.penalty[rows],
            watched=self.watched[rows],
            raw=None if self.raw is None else self.raw[rows],
        )


@attrs.frozen(kw_only=True, eq=False)
class SamplingBatch:
    """The rows of one packed sampler call and whose they are.

    Attributes:
        positions: [rows] absolute position that each row decides.
        window_of_row: [rows] index into `windows`.
        group_of_row: [rows] index of the row's group; groups are numbered through the batch, rows of a group adjacent.
        accept_threshold: [groups] float64.
        force_one: [groups] bool.
        greedy: [groups] bool.
        windows: the windows that the rows belong to.
        clean_confidence: [groups] bool; None = nowhere.
        measure: one entry for each group; empty = as the requests' parameters say.
        questions: what some of the groups ask for besides; None = nothing.
    """

    positions: IntArray
    window_of_row: IntArray
    group_of_row: IntArray
    accept_threshold: FloatArray
    force_one: BoolArray
    greedy: BoolArray
    windows: tuple[Window, ...]
    clean_confidence: BoolArray | None = None
    measure: tuple[str | None, ...] = ()
    questions: Questions | None = None

    def part(self, begin: int, end: int) -> SamplingBatch:
        """The rows from `begin` to `end`, of the same groups and windows."""
        return self.at(slice(begin, end))

    def at(self, rows: slice | IntArray) -> SamplingBatch:
        """These rows, ascending, of the same groups and windows."""
        return attrs.evolve(
            self,
            positions=self.positions[rows],
            window_of_row=self.window_of_row[rows],
            group_of_row=self.group_of_row[rows],
            questions=None if self.questions is None else self.questions.part(rows),
        )


@attrs.frozen(kw_only=True)
class KVGeometry:
    """Shape of one layer's attention: query heads over key/value heads.

    Attributes:
        num_heads, num_kv_heads: heads that this process holds.
        head_dim: numbers in each head.
        copies: neighbouring processes that hold the same key/value head, each for some of its query heads.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    copies: int = 1


@attrs.frozen(kw_only=True)
class RowRun:
    """Consecutive rows of one sequence that see the same keys.

    Attributes:
        row_start, row_end: the rows, `[row_start, row_end)` of the batch.
        sequence: whose rows they are: index into the batch's page tables.
        key_start, key_end: the keys that they see, `[key_start, key_end)` of that sequence.
    """

    row_start: int
    row_end: int
    sequence: int
    key_start: int
    key_end: int


@attrs.frozen(kw_only=True, eq=False)
class RowRuns(Sequence[RowRun]):
    """The runs of a forward in the fewest pieces, ascending; made when they are first looked at: kernels never do.

    Attributes:
        key_start, key_end: visible keys of each row, padding rows included.
        row_sequence: [rows] whose row each is, padding rows left out.
    """

    key_start: IntArray = attrs.field(repr=False)
    key_end: IntArray = attrs.field(repr=False)
    row_sequence: IntArray = attrs.field(repr=False)

    @cached_property
    def _runs(self) -> tuple[RowRun, ...]:
        rows = slice(len(self.row_sequence))
        of_rows = (self.row_sequence, self.key_start[rows], self.key_end[rows])
        changes = np.logical_or.reduce([np.diff(values) != 0 for values in of_rows])
        starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
        ends = np.concatenate((starts[1:], [len(self.row_sequence)]))
        return tuple(
            RowRun(row_start=begin, row_end=end, sequence=sequence, key_start=first, key_end=last)
            for begin, end, sequence, first, last in zip(
                starts.tolist(), ends.tolist(), *(values[starts].tolist() for values in of_rows), strict=True
            )
        )

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, index: int) -> RowRun: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RowRun]: ...
    def __getitem__(self, index: int | slice) -> RowRun | Sequence[RowRun]:
        return self._runs[index]

    def __iter__(self) -> Iterator[RowRun]:
        return iter(self._runs)


@attrs.frozen(kw_only=True, eq=False)
class AttentionBatch:
    """Visibility of one forward for one layer kind, as tensors for kernels and as runs for host loops.

    Attributes:
        key_start: [rows] int64, first visible key slot of each row (index into the row's sequence).
        key_end: [rows] int64, exclusive end. Padding rows have `key_end == key_start == 0`.
        row_sequence: [rows] int64 index into `page_tables`; 0 for padding rows.
        page_tables: [sequences, pages] int64 physical page ids, -1 where a sequence has no page.
        page_size: slots per page.
        runs: the same visibility as runs of rows, ascending; padding rows are in none.
    """

    key_start: Tensor
    key_end: Tensor
    row_sequence: Tensor
    page_tables: Tensor
    page_size: int
    runs: Sequence[RowRun]
