"""The seams of the engine. Implementations are chosen by name when the configuration is resolved.

Importing this module imports no torch; tensor types are named in annotations only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

import attrs

from diffulex_core.pattern import AttentionPattern, IntArray
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from diffulex_core.sparse.config import SparseConfig
from diffulex_core.types import (
    AttentionBatch,
    Canvas,
    CompletionReason,
    Decision,
    KVGeometry,
    Outline,
    Refresh,
    SamplingBatch,
    Span,
    Spans,
    StepOutput,
    StepPlan,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from diffulex_core.context import ForwardContext
    from diffulex_core.profiling.session import Recording
    from diffulex_core.profiling.stages import StageClock
    from diffulex_core.sizing import Capacity
    from diffulex_core.weights.types import LoadContext, ResolvedWeight

KindredReq = TypeVar("KindredReq", contravariant=True)

ForceRule = Literal["after_semi_complete", "always"]
"""When a block decides its most confident token although none passes the threshold: once its predecessor is
semi-complete (a block without predecessor counts as that), or in every step."""


@runtime_checkable
class Req(Protocol):
    """One request's decoding state: its tokens, its blocks, and what it wants to feed next."""

    @property
    def request_id(self) -> int:
        """The id that the engine gave it; not negative."""
        ...

    @property
    def params(self) -> SamplingParams:
        """What the user asked for."""
        ...

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt: the answer begins at this position."""
        ...

    @property
    def nfe(self) -> int:
        """Forwards that the request has taken part in, prefill included."""
        ...

    @property
    def draws(self) -> int:
        """Sampling steps so far: the counter of the request's random draws."""
        ...

    @property
    def known_tokens(self) -> IntArray:
        """[n] tokens whose K/V may be taken from shared pages: whole blocks that can never change again."""
        ...

    @property
    def stored_tokens(self) -> IntArray:
        """[n] all tokens from position 0 through the last running block, decided or masked."""
        ...

    @property
    def output_tokens(self) -> IntArray:
        """[n] the longest decided prefix of the answer, cut at the stop token and the limits; holds no mask token."""
        ...

    @property
    def canvas(self) -> Canvas:
        """A copy of the answer region as it stands, for streams and traces."""
        ...

    @property
    def completion(self) -> CompletionReason | None:
        """Why the request is done, or None while it goes on."""
        ...

    def most_slots(self) -> int:
        """KV slots that the request needs, in each of its sequences, if it runs to its limit."""
        ...

    def most_rows(self) -> int:
        """Rows (`Span.rows`) of the largest span that must be fed in one step, those of a second sequence included."""
        ...

    def plan(self, stored: int, budget: int | None) -> Span | None:
        """What to feed next, without changing anything.

        Args:
            stored: K/V of positions below this are in the request's pages, final.
            budget: most rows (`Span.rows`) to feed; None = no limit.
        Returns:
            A span of at most `budget` rows, or None when nothing useful fits.
        """
        ...

    def chunkable(self, stored: int) -> bool:
        """Whether the next span may be cut shorter (a prefill), so that a block's rows are enough to make progress."""
        ...

    def apply(self, span: Span, decision: Decision) -> None:
        """Take over what one forward decided. Afterwards `completion` may be set.

        A request that does not take what the sampler accepted writes into `decision.accepted` what it took: positions
        whose token it set, decided anew or replaced.
        """
        ...

    def preempted(self) -> None:
        """Take note that the pages are gone, and with them all K/V that were not final."""
        ...

    def finish(self, reason: CompletionReason) -> None:
        """End the request now; its output is the longest decided prefix."""
        ...


@runtime_checkable
class ReqKind(Protocol[KindredReq]):
    """What requests of one kind do together: the same as one by one, in fewer operations."""

    def plan(self, requests: Sequence[KindredReq], outlines: Sequence[Outline]) -> Spans:
        """The spans that some outlines stand for, without changing anything.

        Args:
            requests: different ones.
            outlines: what each said that it would feed.
        """
        ...

    def apply(self, requests: Sequence[KindredReq], spans: Spans, decisions: Sequence[Decision]) -> None:
        """As `Req.apply` for each of the requests.

        Args:
            requests: different ones.
            spans: what each was fed, planned together or by itself.
            decisions: one for each.
        """
        ...


@runtime_checkable
class JointReq(Req, Protocol):
    """What a request offers besides `Req` that may be planned and moved on together with others of its kind."""

    @property
    def kind(self) -> ReqKind[Any] | None:
        """Those of equal kinds go together; None = it goes by itself. The same throughout its life."""
        ...

    def outline(self, stored: int) -> Outline | None:
        """The numbers of what `plan(stored, None)` returns, where no smaller span would be useful.

        None: `plan` is to be asked. It always is for spans that can be cut, or that an outline cannot describe.
        """
        ...


@runtime_checkable
class GuidedReq(Req, Protocol):
    """What a request that may own a second sequence (classifier-free guidance) offers besides `Req`.

    The second sequence has pages of its own. Its spans are `Span.guidance`: both sequences are fed in the same forward,
    and nothing of them is ever final.
    """

    @property
    def guided(self) -> bool:
        """Whether the request owns two sequences; the same throughout its life."""
        ...


@runtime_checkable
class Foreseeing(Protocol):
    """A request whose forwards are planned ahead, so that it can say what an early end saves."""

    @property
    def steps_left(self) -> int | None:
        """Forwards that would follow if nothing ended it early; None where that depends on what is decided."""
        ...


@runtime_checkable
class KVCacheManager(Protocol):
    """Owner of the pages: who holds which, which are shared, which are free. Knows no tensors."""

    @property
    def page_size(self) -> int:
        """Slots per page."""
        ...

    @property
    def num_pages(self) -> int:
        """All pages, free or not."""
        ...

    @property
    def num_free_pages(self) -> int:
        """Pages that a reservation may take, cached but unused ones included."""
        ...

    def open(self, sequence: int, known: IntArray, prompt_len: int) -> int:
        """Start a sequence and take over shared pages that hold its first tokens.

        Args:
            sequence: id of no open sequence, any integer; one that was released may come again.
            known: [n] tokens that may be served from the cache.
        Returns:
            Number of leading slots that are stored already, a multiple of the page size.
        """
        ...

    def reserve(self, sequence: int, slots: int) -> None:
        """Make sure that the sequence's page table covers `slots` slots.

        Raises:
            OutOfPages: too few pages are free; nothing changed.
        """
        ...

    def commit(self, sequence: int, tokens: IntArray, slots: int) -> None:
        """Declare that K/V of `[0, slots)` are stored in their final form; whole pages become shareable.

        Args:
            tokens: [n] the sequence's tokens from position 0 that may serve others; a page stays private where they, or
                the first `slots` of them, do not cover all that its K/V depend on.
        """
        ...

    def stored(self, sequence: int) -> int:
        """Slots whose K/V are final."""
        ...

    def truncate(self, sequence: int, slots: int) -> None:
        """Give back the pages that `[0, slots)` does not need.

        Args:
            slots: at least those whose K/V are final.
        """
        ...

    def page_table(self, sequence: int) -> IntArray:
        """[pages] physical page ids of the sequence, a copy."""
        ...

    def release(self, sequence: int) -> None:
        """Give the sequence's pages back. A sequence that is not open is an error (KeyError)."""
        ...

    def check_integrity(self) -> None:
        """Raise AssertionError when the books do not balance."""
        ...


@runtime_checkable
class Scheduler(Protocol):
    """Decides what runs in each step and keeps every request's life cycle."""

    def add(self, request: Req) -> None:
        """Queue a request.

        Raises:
            PromptTooLong: it can never fit the token budget or the cache; nothing changed.
        """
        ...

    def abort(self, request_id: int, reason: CompletionReason = CompletionReason.ABORTED) -> bool:
        """End a waiting or running request now and free its pages; False when it is not here (any more)."""
        ...

    def schedule(self) -> StepPlan | None:
        """The next step, or None when nothing waits or runs."""
        ...

    def update(self, plan: StepPlan, output: StepOutput) -> Sequence[Req]:
        """Apply a step's decisions. Returns the requests that ended with it."""
        ...

    def has_work(self) -> bool:
        """Whether a request waits or runs, so that `schedule` has something to plan."""
        ...

    def check_integrity(self) -> None:
        """Raise AssertionError when a request is in two places or pages leak."""
        ...


@runtime_checkable
class ModelRunner(Protocol):
    """Executes plans: packs rows, runs the model, samples.

    For requests whose spans say so it keeps one hidden row each, until a plan names them as ended.
    """

    def execute(self, plan: StepPlan) -> StepOutput:
        """Run one forward over the plan's rows, and sample. One decision comes back for each window."""
        ...

    def close(self) -> None:
        """Free the device memory it holds."""
        ...


@runtime_checkable
class StagedRunner(Protocol):
    """What a runner offers besides `ModelRunner` that times its stages (`StepOutput.stages`)."""

    @property
    def clock(self) -> StageClock:
        """The clock of its stages; a profiler watches it."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Where the network runs: it loads it, says what fits, and then executes plans as a `ModelRunner`.

    The factory of an executor is called with the `worker.Blueprint` and, as keywords, `host`, `devices` (one for each
    rank), `replica` (which copy of the network this is), `sharers` (processes of the engine on one device) and
    `progress`. It may return before everything is loaded.
    """

    @property
    def vocab_size(self) -> int:
        """Ids below this may be fed and decided."""
        ...

    def capacity(self) -> Capacity:
        """What fits once everything is loaded; waits until then and raises what went wrong."""
        ...

    def allocate(self, num_pages: int) -> None:
        """Make the pages and get ready for plans. Called once."""
        ...

    def execute(self, plan: StepPlan) -> StepOutput:
        """As `ModelRunner.execute`, in every process that takes part."""
        ...

    def close(self) -> None:
        """Free the device memory and end what was started. Calling it again does nothing."""
        ...


@runtime_checkable
class ProfiledExecutor(Protocol):
    """What an executor offers besides `Executor` whose processes can be profiled."""

    def start_profile(self, recording: Recording) -> None:
        """Time stages by when the device is done with them, and record the processes other than this one."""
        ...

    def stop_profile(self) -> tuple[Path, ...]:
        """End that, and return the files that were written. Without a recording that runs it does nothing."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """Turns logits into decisions. Pure: it keeps nothing between calls."""

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        """Decide all rows of a step at once.

        Args:
            logits: [rows, columns] any float dtype, not modified; see `DiffusionModel.logits` for whose columns.
            batch: whose rows they are.
        Returns:
            One decision for each window of `batch.windows`.
        """
        ...


@runtime_checkable
class PartwiseSampler(Protocol):
    """What a sampler offers besides `Sampler` whose rows may be looked at in parts (`max_logits_tokens`)."""

    def score(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """What is to be known of each row, whatever rows are beside it.

        Args:
            logits: [rows, columns] as for `Sampler.sample`.
            batch: a part of a step's batch.
        Returns:
            [facts, rows], on the device.
        """
        ...

    def decide(self, scored: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        """One decision for each window from the facts of all rows, [facts, rows]."""
        ...


@runtime_checkable
class BelievingSampler(PartwiseSampler, Protocol):
    """What the sampler of a strategy with self-conditioning offers besides `Sampler`."""

    def score_and_believe(self, logits: Tensor, batch: SamplingBatch) -> tuple[Tensor, Tensor]:
        """As `score`, and the logits that are decided from.

        Returns:
            [facts, rows], and [rows, columns] float32 logits after temperature and limits, as
            `SelfConditioned.soft_embeddings` takes them.
        """
        ...


@runtime_checkable
class AttentionBackend(Protocol):
    """Computes attention over paged keys and values by interval."""

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        """Attention output of every row.

        Args:
            query: [rows, heads, head_dim].
            key_pages, value_pages: [pages, page_size, kv_heads, head_dim]; in-flight rows are already written.
                Query head `h` reads KV head `h // (heads // kv_heads)`.
            batch: each row's page table and key interval.
            scale: factor on the scores.
        Returns:
            [rows, heads, head_dim] in the query's dtype; rows with an empty interval are zero.
        """
        ...


@runtime_checkable
class CachePolicy(Protocol):
    """Says which K/V of a full pass are kept for the passes after it (the sparse cache).

    Where several processes share a layer, each has its own heads; all call it for the same passes in the same order.
    """

    def keep(self, layer: int, query: Tensor, key: Tensor, refresh: Refresh) -> Tensor:
        """Which rows of one sequence's pass are kept in one layer.

        Args:
            layer: index of the layer among those that store K/V.
            query: [rows, heads, head_dim] of the whole sequence, rotated.
            key: [rows, kv_heads, head_dim], rotated. Query head `h` reads KV head `h // (heads // kv_heads)`.
            refresh: the region, which is not chosen from, and how many rows of the others are wanted.
        Returns:
            [kv_heads, refresh.keep] int64 rows, ascending for each KV head.
        """
        ...


@runtime_checkable
class DiffusionModel(Protocol):
    """A model family's network (a torch.nn.Module). Holds weights, no decoding state."""

    @property
    def kv_geometry(self) -> Sequence[KVGeometry]:
        """The heads that this process holds, one entry for each layer that stores keys and values."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the head over all processes; ids at or above the tokenizer's size are padding."""
        ...

    @property
    def windows(self) -> Sequence[int | None]:
        """The layer kinds: sliding-window width in tokens, or None for full attention, of each kind."""
        ...

    def __call__(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """[rows] ids and positions -> [rows, hidden] final hidden states (after the last norm)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, columns]: the logits of the ids that this process holds.

        A single process holds all of them. Of several, rank `r` holds the ids from `r * columns` on, where `columns` is
        `vocab_size / processes` rounded up; columns past `vocab_size` mean nothing.
        """
        ...


@runtime_checkable
class SelfConditioned(Protocol):
    """What a network with the capability `self_conditioning` offers besides `DiffusionModel`.

    A step's logits become embeddings here; the next forward of the same rows takes them as `ForwardContext.soft`.
    Between the two they belong to the request. Rows that are given none, as in a canvas's first step, count as zero.
    """

    def soft_embeddings(self, logits: Tensor) -> Tensor:
        """The embedding that each row expects: `softmax(logits) @ embedding`, scaled as embedded tokens are.

        Args:
            logits: [rows, columns] as `DiffusionModel.logits` returns them, after the sampler's temperature.
        Returns:
            [rows, hidden] in the activation dtype, the same on every process.
        """
        ...


@runtime_checkable
class SoftInputNetwork(Protocol):
    """What a network with the capability `soft_inputs` offers besides `DiffusionModel`."""

    def blend(self, ids: Tensor, weights: Tensor, match_norm: Tensor) -> Tensor:
        """Weighted sums of token embeddings, to be fed as `ForwardContext.soft`.

        Args:
            ids: [rows, k] int64.
            weights: [rows, k] float32.
            match_norm: [rows] bool: scale the sum to the weighted sum of the embeddings' norms.
        Returns:
            [rows, hidden] in the activation dtype, summed in float32, the same on every process.
        """
        ...


@runtime_checkable
class WeightResolver(Protocol):
    """Says where each checkpoint tensor goes. `WeightRules` covers the usual cases."""

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        """Target of the checkpoint tensor `name`, or None when it is not expected."""
        ...


@runtime_checkable
class ModelSource(Protocol):
    """Turns a model's name into a directory that holds its files."""

    def resolve(self, name: str) -> Path | None:
        """The directory, or None when this source does not know the name.

        Raises:
            CheckpointError: the name is this source's, but its files cannot be had; says why.
        """
        ...


@attrs.frozen(kw_only=True)
class ReqContext:
    """What every request of an engine shares; built once when the engine is assembled.

    Attributes:
        pattern: visibility of the strategy.
        buffer_size: most blocks that run at once.
        mask_token_id: fills undecided positions, never decided; None for families without one.
        eos_token_ids: tokens that end an answer unless the request ignores them.
        max_model_len: most positions of a sequence, prompt included.
        thresholds: the engine's defaults; requests may override them.
        shifted: row i of the logits predicts position i + 1, not i.
        force_rule: the family's rule for deciding one token when none is confident enough.
        auto_nfe: derived NFE cap, or None when it is off.
        options: instance of the strategy's `config_cls`; None where it has none.
        vocab_size: ids below this may be fed and decided; None = unknown, which only a hand-made context may say.
        sparse: the cache of canvas requests that say nothing of it.
    """

    pattern: AttentionPattern
    buffer_size: int
    mask_token_id: int | None
    eos_token_ids: frozenset[int]
    max_model_len: int
    thresholds: DecodingThresholds
    shifted: bool = False
    force_rule: ForceRule = "after_semi_complete"
    auto_nfe: AutoNFE | None = None
    options: Any = None
    vocab_size: int | None = None
    sparse: SparseConfig = SparseConfig(enabled=False)


@attrs.frozen(kw_only=True)
class AutoNFE:
    """Opt-in cap on forwards of requests that set none.

    A request may take `max_tokens / tpf_floor` forwards, but at least `warmup_steps`: one whose mean over the whole
    answer stays below the floor is cut off. The mean so far is not used, so a slow stretch after a fast start is fine.
    Forwards that only read the prompt, or read it again after a preemption, are not counted.

    Attributes:
        warmup_steps: forwards that every request may take.
        tpf_floor: fewest tokens per forward, over the whole answer.
    """

    warmup_steps: int = 8
    tpf_floor: float = 1.0


class ReqFactory(Protocol):
    """Builds a strategy's requests (the strategy's `req` reference)."""

    def __call__(self, *, request_id: int, prompt: IntArray, params: SamplingParams, context: ReqContext) -> Req: ...
