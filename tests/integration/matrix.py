"""Every strategy with every family that it fits: small engines to serve requests with, each step under watch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import attrs
import numpy as np
import torch

from diffulex_core.canvas.options import CanvasOptions
from diffulex_core.config.names import misfits
from diffulex_core.engine import Diffulex
from diffulex_core.host import Host
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.plugin import DecodingStrategy
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.sparse import SparseConfig
from diffulex_core.types import CompletionReason, StepPlan
from tests.families.subjects import FIRST_PARTY, PLAIN
from tests.families.test_family_engines import checkpoint

LENGTHS = (3, 11, 16, 21, 8)
"""Of the prompts that a case's requests take turns in."""
PAGE = 8
"""Positions of a page, unless a test says otherwise."""
MOST_STEPS = 1000
"""More than requests of this size take together, so that whoever needs more hangs."""

Ask = Mapping[str, Any]
"""Sampling parameters of one request."""

MIXED: tuple[Ask, ...] = (
    {"temperature": 0.0, "max_tokens": 12},
    {"temperature": 1.0, "seed": 1, "max_tokens": 9},
    {"temperature": 0.8, "seed": 2, "top_p": 0.9, "top_k": 30, "max_tokens": 11, "logprobs": 1},
    {"temperature": 0.0, "max_tokens": 14, "thresholds": {"accept_threshold": 0.3}, "logit_bias": {60: 2.0}},
    {"temperature": 1.0, "seed": 5, "min_p": 0.02, "max_tokens": 7, "stop_token_ids": tuple(range(0, 256, 9))},
)
"""Requests that differ in everything that a request of any strategy may say."""


@attrs.frozen(kw_only=True)
class Variant:
    """One way to configure a strategy, and what the documentation promises of it.

    Attributes:
        settings: configuration keys.
        asks: its requests.
        shares: whose pages serve later requests: nobody's, the prompt's, or the prompt's and the answer's.
        resumes: a request that lost its pages goes on with the tokens that it would have had.
        chunks: prompts may be fed in pieces.
        grows: a smaller `max_tokens` gives a prefix of what a larger one gives.
        revises: a decided token may change until it is final, so that an answer cut short may hold others.
        canvas: a request holds all its pages from its first step on.
        longer: parameters of longer answers.
        sharpness: factor on the network's last norm, so that confidences lie on both sides of the thresholds.
    """

    settings: Mapping[str, Any] = attrs.field(factory=dict)
    asks: tuple[Ask, ...] = MIXED
    shares: Literal["nothing", "prompt", "answer"] = "answer"
    resumes: bool = True
    chunks: bool = True
    grows: bool = True
    revises: bool = False
    canvas: bool = False
    longer: Ask = attrs.field(factory=lambda: {"max_tokens": 24})
    sharpness: float = 3.0


BLOCKS: Mapping[str, Any] = {"buffer_size": 3, "accept_threshold": 0.4, "semi_complete_threshold": 0.5}
GEMMA: Mapping[str, Any] = {
    "diffusion_gemma_max_denoising_steps": 3,
    "diffusion_gemma_t_min": 0.1,
    "diffusion_gemma_t_max": 0.5,
    "diffusion_gemma_entropy_bound": 0.6,
    "diffusion_gemma_confidence_threshold": 0.5,
}
CANVASES: tuple[Ask, ...] = (
    {"temperature": 0.0, "gen_length": 9},
    {"temperature": 1.0, "seed": 1, "gen_length": 7, "steps": 4},
    {"temperature": 0.0, "max_tokens": 10, "cfg_scale": 1.5, "steps": 5},
    {"temperature": 0.7, "seed": 3, "top_p": 0.9, "gen_length": 6, "logprobs": 2, "ignore_eos": False},
)
LLADA_CANVASES: tuple[Ask, ...] = (
    *CANVASES,
    {"temperature": 0.0, "gen_length": 12, "block_length": 5, "steps": 6},
    {"temperature": 1.0, "seed": 4, "gen_length": 8, "remasking": "random", "steps": 5, "cfg_scale": 0.5},
    {"alg": "confidence_threshold", "gen_length": 9, "seed": 6, "thresholds": {"accept_threshold": 0.2}},
)
DREAM_CANVASES: tuple[Ask, ...] = (
    *({**ask, "alg": "maskgit_plus"} for ask in CANVASES),
    {"alg": "origin", "seed": 4, "gen_length": 8, "steps": 6},
    {"alg": "topk_margin", "seed": 5, "gen_length": 9, "steps": 6, "alg_temp": 0.3},
    {"alg": "entropy", "seed": 6, "gen_length": 7, "steps": 9, "defer_eos": True},
    {"alg": "confidence_threshold", "seed": 7, "gen_length": 8, "thresholds": {"accept_threshold": 0.2}},
)

SPARSE = SparseConfig(retention_ratio=0.4, delay_step=1, default_block_len=5, refresh_every=3)

Recipe = tuple[str, str]
"""Name of a strategy, and the sampling mode that it runs in."""

VARIANTS: Mapping[Recipe, Mapping[str, Variant]] = {
    ("multi_bd", "naive"): {
        "": Variant(settings=BLOCKS),
        "one block": Variant(settings={**BLOCKS, "buffer_size": 1}),
    },
    ("multi_bd", "edit"): {
        "": Variant(settings={**BLOCKS, "max_post_edit_steps": 2}, revises=True),
        "remasking": Variant(
            revises=True,
            settings={
                **BLOCKS,
                "enable_remask": True,
                "remask_threshold": 0.3,
                "edit_threshold": 0.3,
                "penalty_lambda": 0.5,
                "max_post_edit_steps": 3,
            },
        ),
    },
    ("d2f", "naive"): {"": Variant(settings=BLOCKS, shares="nothing", chunks=False)},
    ("dmax", "edit"): {
        "": Variant(settings=BLOCKS, shares="prompt", revises=True),
        "smooth and exact": Variant(
            settings={
                **BLOCKS,
                "token_merge_mode": "iter_smooth_topk",
                "token_merge_top_k": 3,
                "exact_confidence": True,
                "max_post_edit_steps": 3,
            },
            shares="prompt",
            revises=True,
        ),
        "without merging": Variant(settings={**BLOCKS, "token_merge_weight": 0.0}, revises=True),
    },
    ("fast_dllm_v2", "naive"): {
        "": Variant(settings={"buffer_size": 2, "accept_threshold": 0.4}, resumes=False),
        "without block cache": Variant(
            settings={"buffer_size": 2, "accept_threshold": 0.4, "fdv2_use_block_cache": False}
        ),
    },
    ("diffusion_gemma", "naive"): {
        "": Variant(settings=GEMMA),
        "shortened": Variant(settings={**GEMMA, "diffusion_gemma_shorten_last_canvas": True}, grows=False),
    },
    ("llada_canvas", "naive"): {
        "": Variant(
            asks=LLADA_CANVASES, shares="nothing", chunks=False, grows=False, canvas=True, longer={"gen_length": 14}
        ),
        "sparse": Variant(
            settings={"sparse": SPARSE},
            asks=LLADA_CANVASES,
            shares="nothing",
            chunks=False,
            grows=False,
            canvas=True,
            longer={"gen_length": 14},
        ),
    },
    ("dream_canvas", "naive"): {
        "": Variant(
            asks=DREAM_CANVASES, shares="nothing", chunks=False, grows=False, canvas=True, longer={"gen_length": 14}
        ),
        "sparse": Variant(
            settings={"sparse": SPARSE},
            asks=DREAM_CANVASES,
            shares="nothing",
            chunks=False,
            grows=False,
            canvas=True,
            longer={"gen_length": 14},
        ),
    },
}


@attrs.frozen(kw_only=True)
class Case:
    """A strategy in a mode, configured in one way, over one family."""

    family: str
    recipe: Recipe
    variant_name: str
    variant: Variant

    def __str__(self) -> str:
        strategy, mode = self.recipe
        words = [strategy, *([mode] if mode != "naive" else []), *([self.variant_name] if self.variant_name else [])]
        return f"{self.family} {', '.join(words)}"

    @property
    def asks(self) -> list[SamplingParams]:
        return [params(ask, number) for number, ask in enumerate(self.variant.asks)]

    @property
    def prompts(self) -> list[list[int]]:
        return [prompt(LENGTHS[number % len(LENGTHS)], number) for number in range(len(self.variant.asks))]


def params(ask: Ask, seed: int) -> SamplingParams:
    """A request's parameters; past the end of text and with a seed unless it says otherwise."""
    return SamplingParams(**{"ignore_eos": True, "seed": 100 + seed, **ask})


def prompt(length: int, salt: int = 0) -> list[int]:
    """Ordinary tokens."""
    return [(7 * at * at + 13 * at + 31 * salt + 5) % 200 + 20 for at in range(length)]


def first_party(host: Host) -> list[DecodingStrategy]:
    """The strategies of the plugins of this project."""
    return [entry.descriptor for entry in host.strategies.entries() if entry.provenance.dist.startswith(FIRST_PARTY)]


def recipes(host: Host) -> set[Recipe]:
    """Every strategy in every mode that it can run in."""
    found = set()
    for strategy in first_party(host):
        forced = strategy.forces.get("sampling_mode")
        modes = ["naive", *strategy.modes] if forced is None else [str(forced)]
        found.update((strategy.name, mode) for mode in modes)
    return found


def cases(host: Host) -> Iterator[Case]:
    """Every recipe over every family that can run it; the first such family in each variant, the others in the first.

    A family with shifted logits is another first one: rows are carried there.
    """
    for recipe in sorted(recipes(host)):
        strategy = host.strategies.get(recipe[0]).in_mode(recipe[1])
        fitting = [subject.family for subject in PLAIN if not misfits(subject.family, strategy, host)]
        seen = set[str]()
        for family in fitting:
            variants = list(VARIANTS.get(recipe, {}).items())
            for name, variant in variants if family.logits not in seen else variants[:1]:
                yield Case(family=family.name, recipe=recipe, variant_name=name, variant=variant)
            seen.add(family.logits)


@cache
def host() -> Host:
    """The installed plugins."""
    return Host.discover(environ={})


CASES = list(cases(host()))


class Checkpoints:
    """Random checkpoints of the families, written when they are asked for."""

    def __init__(self) -> None:
        self._root = TemporaryDirectory()
        self._written: dict[str, Path] = {}

    def __call__(self, family: str) -> Path:
        if family not in self._written:
            [subject] = (each for each in PLAIN if each.family.name == family)
            self._written[family] = checkpoint(subject, Path(self._root.name) / family)
        return self._written[family]

    def close(self) -> None:
        self._root.cleanup()


class Watched:
    """An engine whose every step is checked: budgets, pages, what is kept, what comes out.

    Pages that nobody owns hold NaN whenever a step begins.
    """

    def __init__(self, case: Case, checkpoints: Checkpoints, **settings: Any) -> None:
        strategy, mode = case.recipe
        options: dict[str, Any] = {
            "decoding_strategy": strategy,
            "sampling_mode": mode,
            "block_size": 4,
            "page_size": PAGE,
            "num_pages": 64,
            "max_model_len": 96,
            "max_num_batched_tokens": 256,
            "skip_warmup": True,
            **case.variant.settings,
            **settings,
        }
        self.engine = Diffulex(checkpoints(case.family), host=host(), strict=True, **options)
        self.parts: Any = self.engine._open
        with torch.no_grad():
            self.parts.runner.network.final_norm.weight.mul_(case.variant.sharpness)
        self.kv = self.parts.scheduler._kv
        self._poison(range(self.kv.num_pages))
        self.records: dict[int, ReqTrajectory] = {}
        self.lost = Counter[int]()
        """How often each request lost its pages."""
        self._take_pages, self.parts.scheduler._preempt = self.parts.scheduler._preempt, self._preempted
        self.steps = 0

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *failure: object) -> None:
        self.engine.close()

    def request(self, prompt: Sequence[int], params: SamplingParams) -> Any:
        """The strategy's request, handed to nobody."""
        return self.parts.req(request_id=0, prompt=np.array(prompt), params=params, context=self.parts.req_context)

    def add(self, prompt: Sequence[int], params: SamplingParams) -> int:
        """Queue a request; returns its id."""
        return self.engine.add_request(list(prompt), params, deliver=self._deliver)

    def step(self) -> StepPlan | None:
        """One forward."""
        self._poison([page for page in self.kv._free if page not in self.kv._key_of_page])
        plan = self.engine.step().plan
        self.parts.scheduler.check_integrity()
        if plan is not None:
            self.steps += 1
            self._check(plan)
        return plan

    def finish(self) -> None:
        """Step until nothing is left to do."""
        began = self.steps
        while self.step() is not None:
            assert self.steps - began < MOST_STEPS, "no end in sight"
        assert self.kv.num_free_pages == self.kv.num_pages, "pages leak"

    def check_nothing_is_left(self) -> None:
        """Nothing is kept of requests that ended, but for what the next plan will drop."""
        scheduler, runner = self.parts.scheduler, self.parts.runner._runner
        assert not scheduler.has_work()
        kept = (scheduler._running, scheduler._waiting, scheduler._known, self.kv._sequences, self.engine._tickets)
        assert not any(kept)
        assert {*runner._kept._place, *runner._beliefs._of} <= set(scheduler._ended)
        assert len(self.kv._entry_of_key) <= self.kv.num_pages

    def serve(
        self,
        prompts: Iterable[Sequence[int]],
        params: Iterable[SamplingParams],
        *,
        aborts: Sequence[tuple[int, int]] = (),
    ) -> list[ReqTrajectory]:
        """Answers to prompts that come together; `aborts` pairs steps with a prompt withdrawn after them."""
        ids = [self.add(*each) for each in zip(prompts, params, strict=True)]
        began = self.steps
        for at, number in sorted(aborts):
            while self.steps < began + at and self.step() is not None:
                pass
            assert self.engine.abort_request(ids[number])
            self.parts.scheduler.check_integrity()
        self.finish()
        return [self.records[each] for each in ids]

    def preempt(self, request_id: int) -> bool:
        """Take a running request's pages away, as if they had run out; False when it is not running."""
        entry = self.parts.scheduler._running.get(request_id)
        if entry is None:
            return False
        self.parts.scheduler._preempt(entry)
        return True

    def _preempted(self, entry: Any) -> None:
        self.lost[entry.request.request_id] += 1
        self._take_pages(entry)

    def _poison(self, pages: Iterable[int]) -> None:
        store = self.parts.runner._runner._kv_store
        for tensor in (*store.key_pages, *store.value_pages):
            tensor[list(pages)] = torch.nan

    def _check(self, plan: StepPlan) -> None:
        schedule, page_size = self.engine.config.schedule, self.kv.page_size
        assert 0 < plan.rows <= schedule.max_num_batched_tokens
        assert 0 < len(plan.windows) <= schedule.max_num_reqs
        tables = [table for window in plan.windows for table in (window.page_table, window.second_table)]
        holders = np.bincount(np.concatenate([table for table in tables if table is not None]))
        for window in plan.windows:
            span = window.span
            assert span.slots <= len(window.page_table) * page_size
            first = 0 if span.refresh is not None else span.first_stored if span.packed is None else span.packed
            written = window.page_table[first // page_size : -(-span.slots // page_size)]
            assert (holders[written] == 1).all(), "a page that is written has two holders"
        runner, known = self.parts.runner._runner, self.engine._tickets.keys() | self.engine._ended.keys()
        assert set(runner._kept._place) <= known, "rows of requests that ended are kept"
        assert set(runner._beliefs._of) <= known, "beliefs of requests that ended are kept"

    def _deliver(self, record: ReqTrajectory) -> None:
        params = self.engine._ended[record.req_id].request.params
        assert record.error is None
        assert self.engine.config.model.mask_token_id not in record.token_ids
        assert all(0 <= token < self.parts.vocab_size for token in record.token_ids)
        assert not set(params.stop_token_ids) & set(record.token_ids)
        options = self.parts.req_context.options
        length = options.gen_length if isinstance(options, CanvasOptions) else None
        limit = params.gen_length or length or params.max_tokens
        assert len(record.token_ids) <= limit
        assert record.completion_reason is not CompletionReason.LENGTH_TOKENS or len(record.token_ids) == limit
        self.records[record.req_id] = record


def tokens(records: Iterable[ReqTrajectory]) -> list[tuple[int, ...]]:
    """The answers."""
    return [record.token_ids for record in records]
