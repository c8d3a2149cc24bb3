"""The frozen values that travel between request, scheduler, runner, sampler and attention in one step."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal, overload

import attrs
import numpy as np

from diffulex_core.columns import NO_ROW, Outline, Spans, Windows
from diffulex_core.pattern import IntArray
from diffulex_core.profiling.stages import StageSeconds
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.spans import (
    CARRIED,
    Blends,
    BoolArray,
    FloatArray,
    Guidance,
    Refresh,
    SampleGroup,
    SampleGroups,
    Span,
    Terms,
    Window,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CARRIED",
    "NO_ROW",
    "Alternatives",
    "AttentionBatch",
    "Blends",
    "BoolArray",
    "Canvas",
    "CompletionReason",
    "Decision",
    "FloatArray",
    "Guidance",
    "HowRun",
    "KVGeometry",
    "LogProbabilities",
    "Outline",
    "Questions",
    "Refresh",
    "RowRun",
    "RowRuns",
    "SampleGroup",
    "SampleGroups",
    "SamplingBatch",
    "Span",
    "Spans",
    "StepOutput",
    "StepPlan",
    "Terms",
    "Window",
    "Windows",
]

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


@attrs.frozen(kw_only=True, eq=False)
class Alternatives:
    """The most probable tokens of some positions, most probable first, equals from the highest id down.

    Attributes:
        tokens: [n, k] int64.
        probabilities: [n, k] float32, of the distribution before temperature and top-p, top-k, min-p.
    """

    tokens: IntArray
    probabilities: FloatArray


@attrs.frozen(kw_only=True, eq=False)
class StepPlan:
    """Everything the runner executes in one forward: the ragged rows of all planned requests.

    Attributes:
        step: counts plans.
        windows: one for each planned request; a scheduler may give them as columns.
        ended: ids of requests that ended since the previous plan, so that the runner keeps nothing for them.
    """

    step: int
    windows: tuple[Window, ...] | Windows
    ended: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Number of input rows, padding excluded."""
        return Windows.of(self.windows).spans.rows


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
    windows: tuple[Window, ...] | Windows
    clean_confidence: BoolArray | None = None
    measure: tuple[str | None, ...] = ()
    questions: Questions | None = None

    @property
    def params(self) -> Sequence[SamplingParams]:
        """Of each window."""
        windows = self.windows
        return windows.params if isinstance(windows, Windows) else [window.params for window in windows]

    @property
    def draws(self) -> Sequence[int]:
        """Of each window, how many sampling steps its request has had."""
        windows = self.windows
        return windows.draws if isinstance(windows, Windows) else [window.draw for window in windows]

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
