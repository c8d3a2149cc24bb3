"""One request driven by hand, without a network: its strategy's own sampler decides from made-up logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import numpy as np
import torch

from diffulex_core.blocks import BlockRequest
from diffulex_core.config import EngineConfig
from diffulex_core.config.load import LoadedConfig, load_config
from diffulex_core.distributed import ALONE
from diffulex_core.packing import pack
from diffulex_core.pattern import IntArray
from diffulex_core.protocols import GuidedReq, Req, ReqFactory, Sampler
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling import PackedSampler
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.check import CheckFailed
from diffulex_core.testing.checkpoints import PADDING, TinyVocabulary, write_checkpoint
from diffulex_core.testing.engines import configured
from diffulex_core.testing.patience import patience
from diffulex_core.testing.shadow import Shadow
from diffulex_core.testing.subjects import StrategySubject
from diffulex_core.types import Decision, Span, StepPlan, Window
from diffulex_core.worker import component, make_pattern

MOST_STEPS = 1500
"""More than any request of the kit takes that makes progress."""
STILL = 64
"""Steps in which something must change: each of them is sure of half of its tokens."""


@attrs.frozen(kw_only=True)
class Ask:
    """A request and the network that it meets.

    Attributes:
        prompt: token ids.
        params: sampling parameters.
        logits: seed of the made-up logits.
        shifted: whether they stand for a family with shifted logits; None = as the partner's do.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    logits: int = 0
    shifted: bool | None = None


@attrs.frozen(kw_only=True, eq=False)
class Bench:
    """Everything that a strategy's requests need of an engine.

    Attributes:
        subject: the strategy.
        config: as an engine would resolve it.
        vocabulary: the partner family's.
        factory: makes requests.
        context: what they share.
        sampler: decides.
    """

    subject: StrategySubject
    config: EngineConfig
    vocabulary: TinyVocabulary
    factory: ReqFactory
    context: ReqContext
    sampler: Sampler

    def request(self, ask: Ask, *, request_id: int = 0) -> Req:
        """A fresh request."""
        context = self.context if ask.shifted is None else attrs.evolve(self.context, shifted=ask.shifted)
        return self.factory(
            request_id=request_id, prompt=np.array(ask.prompt, dtype=np.int64), params=ask.params, context=context
        )

    def journey(self, ask: Ask, *, request_id: int = 0) -> Journey:
        """A fresh request at its beginning."""
        request = self.request(ask, request_id=request_id)
        return Journey(
            bench=self,
            ask=ask,
            request=request,
            shadow=Shadow(pattern=self.context.pattern, prompt_len=len(ask.prompt), slots=request.most_slots()),
        )


@contextmanager
def bench(subject: StrategySubject, **settings: Any) -> Iterator[Bench]:
    """What requests of a strategy need, with `settings` besides the kit's own."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary = write_checkpoint(subject.partner, folder)

        def load(options: Mapping[str, Any]) -> LoadedConfig:
            return load_config(str(folder), options, host=subject.host)

        yield _bench(subject, configured(subject.partner, subject, settings, load).config, vocabulary)


def _bench(subject: StrategySubject, config: EngineConfig, vocabulary: TinyVocabulary) -> Bench:
    decoding, mask = config.decoding, config.model.mask_token_id
    make_sampler = component(subject.host, "sampler", config.strategy.sampler, PackedSampler)
    return Bench(
        subject=subject,
        config=config,
        vocabulary=vocabulary,
        factory=BlockRequest if config.strategy.req is None else subject.load(config.strategy.req),
        context=ReqContext(
            pattern=make_pattern(config, subject.host),
            buffer_size=decoding.buffer_size,
            mask_token_id=mask,
            eos_token_ids=frozenset(config.model.eos_token_ids),
            max_model_len=config.schedule.max_model_len,
            thresholds=decoding.decoding_thresholds,
            shifted=config.family.logits == "shifted",
            force_rule=config.family.sampler.force_rule,
            options=config.strategy_options,
            vocab_size=vocabulary.size,
            sparse=config.cache.sparse,
        ),
        sampler=make_sampler(
            vocab_size=vocabulary.size, forbidden=frozenset() if mask is None else frozenset({mask}), tp=ALONE
        ),
    )


@attrs.define(kw_only=True, eq=False)
class Journey:
    """A request on its way, with the books that a scheduler and a cache would keep of it.

    Attributes:
        bench, ask, request: what travels.
        shadow: what its pages hold.
        stored: K/V of positions below this are final.
        preemptions: times it lost its pages.
        steps: spans that were executed.
    """

    bench: Bench
    ask: Ask
    request: Req
    shadow: Shadow
    stored: int = 0
    preemptions: int = 0
    steps: int = 0
    _state: tuple[object, ...] = ()
    _changed: int = 0

    @property
    def guided(self) -> bool:
        """Whether it owns two sequences, of which nothing is ever final."""
        return isinstance(self.request, GuidedReq) and self.request.guided

    def plan(self, budget: int | None = None) -> Span | None:
        """What it wants to feed."""
        return self.request.plan(self.stored, budget)

    def execute(self, span: Span, through: Callable[[Decision], Decision] | None = None) -> Decision:
        """Feed a span and let the request take over what comes of it, `through` whatever the decision has to pass."""
        decision = self.decide(span)
        decision = decision if through is None else through(decision)
        self.shadow.execute(span)
        with patience("apply() of a request"):
            self.request.apply(span, decision)
        self.steps += 1
        if not self.guided:
            if span.store_until < self.stored:
                raise CheckFailed(
                    f"the span of positions {span.start} to {span.end} has store_until={span.store_until}, but "
                    f"{self.stored} positions were final before it; what is final stays so"
                )
            self.stored = span.store_until
        return decision

    def advance(self, budget: int | None = None, *, through: Callable[[Decision], Decision] | None = None) -> Span:
        """One step; for `through` see `execute`.

        Raises:
            CheckFailed: it plans nothing, or too many steps were taken.
        """
        with patience("plan() of a request"):
            span = self.plan(budget)
        if span is None:
            raise CheckFailed(
                f"after {self.steps} steps {self} plans nothing although "
                f"{'nothing limits its rows' if budget is None else f'{budget} rows are free'}, so it never ends"
            )
        if self.steps >= MOST_STEPS:
            raise CheckFailed(f"{self} has not ended after {self.steps} steps, although tokens were accepted all along")
        self.execute(span, through)
        state = (self.stored, *visible(self.request))
        if state != self._state:
            self._state, self._changed = state, self.steps
        elif self.steps - self._changed >= STILL:
            raise CheckFailed(
                f"nothing of {self} changed in {STILL} steps, although the network was sure of half of its tokens in "
                "each of them; every step brings a request nearer to its end"
            )
        return span

    def finish(self, budget: int | None = None) -> tuple[int, ...]:
        """Go on to the end; the answer."""
        while self.request.completion is None:
            self.advance(budget)
        return self.output

    @property
    def output(self) -> tuple[int, ...]:
        """The answer so far."""
        return tuple(self.request.output_tokens.tolist())

    def preempt(self, *, cached: bool) -> None:
        """Take its pages away; `cached` leaves it those that a prefix cache would find again."""
        known = self.publishable if cached and self.shares else 0
        self.request.preempted()
        self.preemptions += 1
        page_size = self.bench.config.cache.page_size
        self.stored = known // page_size * page_size
        self.shadow.lose(self.stored)

    @property
    def shares(self) -> bool:
        """Whether its pages may serve others."""
        return self.bench.config.cache.enable_prefix_caching and not self.guided

    @property
    def publishable(self) -> int:
        """Positions below this are final, known, and so is all that their K/V depend on."""
        end = min(self.stored, len(self.request.known_tokens))
        for position in range(end):
            if self.bench.context.pattern.dependency_end(position, self.request.prompt_len) > end:
                return position
        return end

    def decide(self, span: Span) -> Decision:
        """The sampler's decision of what a span asks."""
        second = isinstance(self.request, GuidedReq) and self.request.guided
        table = np.arange(-(-max(span.slots, span.visible_end or 0) // self.bench.config.cache.page_size))
        window = Window(
            request_id=self.request.request_id,
            span=span,
            prompt_len=self.request.prompt_len,
            page_table=table,
            params=self.request.params,
            draw=self.request.draws,
            second_table=table + len(table) if second else None,
            preemptions=self.preemptions,
        )
        packed = pack(
            StepPlan(step=self.steps, windows=(window,)),
            self.bench.context.pattern,
            (None,),
            self.bench.config.cache.page_size,
        )
        if len(packed.head_rows) == 0:
            return nothing()
        rows = [self.logits(int(position)) for position in packed.sampling.positions]
        [decision] = self.bench.sampler.sample(torch.from_numpy(np.stack(rows)), packed.sampling)
        return decision

    def logits(self, position: int) -> np.typing.NDArray[np.float32]:
        """[columns] of a position in the request's present draw: flat, or sure of something, often of no token."""
        vocabulary = self.bench.vocabulary
        random = np.random.default_rng((self.ask.logits, position, self.request.draws))
        row = random.standard_normal(vocabulary.size + PADDING).astype(np.float32)
        kind = random.random()
        if kind < 0.5:
            row[random.choice(vocabulary.plain)] += 14
        elif kind < 0.6 and vocabulary.eos:
            row[random.choice(vocabulary.eos)] += 14
        if random.random() < 0.3:
            # What may never be decided, however probable it is.
            row[[*range(vocabulary.size, len(row)), *([] if vocabulary.mask is None else [vocabulary.mask])]] += 20
        return row

    def __str__(self) -> str:
        return (
            f"the request with a prompt of {len(self.ask.prompt)} tokens, max_tokens={self.ask.params.max_tokens}"
            f"{', shifted logits' if self.ask.shifted else ''}"
        )


def visible(request: Req) -> tuple[object, ...]:
    """All that a request shows of its state, but for what it counts."""
    canvas = request.canvas
    return (
        request.stored_tokens.tobytes(),
        request.known_tokens.tobytes(),
        request.output_tokens.tobytes(),
        request.completion,
        (canvas.start, canvas.committed, canvas.running_blocks, canvas.tokens.tobytes(), canvas.decided.tobytes()),
    )


def shown(span: Span | None) -> object:
    """A span as something that can be compared."""
    if span is None:
        return None
    groups = tuple(
        (group.block, group.positions.tobytes(), group.rows.tobytes(), group.accept_threshold, group.force_one)
        for group in span.groups
    )
    blends = span.blends and (span.blends.positions.tobytes(), span.blends.ids.tobytes(), span.blends.weights.tobytes())
    guidance = span.guidance and span.guidance.tokens.tobytes()
    plain = (span.start, span.catch_up, span.store_from, span.store_until, span.visible_end, span.phase, span.advances)
    rest = (span.keep, span.recall, span.remember, span.refresh, span.packed, span.held)
    return plain, rest, span.tokens.tobytes(), groups, blends, guidance


def nothing() -> Decision:
    """The decision of a span that asks nothing."""
    none: IntArray = np.empty(0, dtype=np.int64)
    return Decision(
        positions=none, tokens=none, confidence=np.empty(0, dtype=np.float32), accepted=np.empty(0, dtype=np.bool_)
    )
