"""Serving DiffusionGemma's canvases without an engine: any pages, budgets and processes around one small network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import numpy as np
import torch

from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.kv_store import KVStore
from diffulex_core.req_context import ReqContext
from diffulex_core.runner import EagerRunner
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.types import StepOutput, StepPlan
from diffulex_gemma.decision import CanvasDecision
from diffulex_gemma.model import DiffusionGemma
from diffulex_gemma.options import DenoisingOptions
from diffulex_gemma.pattern import CausalCanvas
from diffulex_gemma.request import CanvasRequest
from diffulex_gemma.sampler import CanvasSampler
from tests.families.gemma import CANVAS, CPU, VOCAB, native_model

SHARP = {"t_min": 0.1, "t_max": 0.3, "max_denoising_steps": 4, "entropy_bound": 0.5, "confidence_threshold": 0.3}
"""Settings under which a small random network keeps some positions, renoises others, and stops some canvases early."""


def mild_model(seed: int = 0, **text: Any) -> Any:
    """A random network of transformers that does not magnify rounding from step to step.

    With self-conditioning as strong as the other layers a difference grows fivefold in each step, so that no two
    implementations agree for long.
    """
    model = native_model(seed, **text)
    with torch.no_grad():
        model.model.decoder.self_conditioning.down_proj.weight.mul_(0.1)
    return model


def options(**settings: Any) -> DenoisingOptions:
    """`SHARP` but for `settings`, named without their prefix."""
    return DenoisingOptions(**{f"diffusion_gemma_{name}": value for name, value in {**SHARP, **settings}.items()})


def request(
    prompt: Sequence[int],
    request_id: int = 0,
    *,
    seed: int = 0,
    max_tokens: int = 10,
    eos: Iterable[int] = (),
    canvas: int = CANVAS,
    max_model_len: int = 200,
    settings: DenoisingOptions | None = None,
    **params: Any,
) -> CanvasRequest:
    context = ReqContext(
        pattern=CausalCanvas(block_size=canvas),
        buffer_size=1,
        mask_token_id=None,
        eos_token_ids=frozenset(eos),
        max_model_len=max_model_len,
        thresholds=DecodingThresholds(),
        options=settings or options(),
        vocab_size=VOCAB,
    )
    given = SamplingParams(seed=seed, max_tokens=max_tokens, **params)
    return CanvasRequest(request_id=request_id, prompt=np.array(prompt), params=given, context=context)


def prompt(length: int, salt: int = 0) -> list[int]:
    return [(11 * at * at + 7 * at + 37 * salt + 3) % VOCAB for at in range(length)]


@attrs.frozen(kw_only=True, eq=False)
class Service:
    """A scheduler with its pages and a runner; pages hold NaN until they are written."""

    scheduler: ContinuousScheduler
    runner: EagerRunner
    plans: list[StepPlan] = attrs.field(factory=list)
    outputs: list[StepOutput] = attrs.field(factory=list)

    @classmethod
    def of(
        cls,
        model: DiffusionGemma,
        *,
        tp: Communicator = ALONE,
        page_size: int = 4,
        num_pages: int = 64,
        budget: int = 200,
        max_num_reqs: int = 8,
        prefix_caching: bool = True,
        canvas: int = CANVAS,
        max_logits_tokens: int | None = None,
    ) -> Service:
        pattern = CausalCanvas(block_size=canvas)
        pages = PagedKVCache(num_pages=num_pages, page_size=page_size, pattern=pattern, prefix_caching=prefix_caching)
        scheduler = ContinuousScheduler(
            pages, max_num_reqs=max_num_reqs, max_num_batched_tokens=budget, block_size=canvas
        )
        store = KVStore.allocate(model.kv_geometry, num_pages, page_size, model.embed.weight.dtype, CPU)
        for tensor in (*store.key_pages, *store.value_pages):
            tensor.fill_(float("nan"))
        runner = EagerRunner(
            model=model,
            sampler=CanvasSampler(vocab_size=VOCAB, forbidden=frozenset(), tp=tp),
            pattern=pattern,
            backend=TorchCPU(),
            kv_store=store,
            page_size=page_size,
            device=CPU,
            max_logits_tokens=max_logits_tokens,
        )
        return cls(scheduler=scheduler, runner=runner)

    def step(self) -> bool:
        """One forward; False when there is nothing to do."""
        plan = self.scheduler.schedule()
        if plan is None:
            return False
        output = self.runner.execute(plan)
        self.plans.append(plan)
        self.outputs.append(output)
        self.scheduler.update(plan, output)
        self.scheduler.check_integrity()
        return True

    def run(self, requests: Iterable[CanvasRequest], limit: int = 1000) -> list[list[int]]:
        """Serve requests to their end; returns their answers."""
        asked = list(requests)
        for each in asked:
            self.scheduler.add(each)
        while self.step():
            assert len(self.plans) < limit, "the scheduler makes no progress"
        return [each.output_tokens.tolist() for each in asked]

    @property
    def preemptions(self) -> int:
        """How often a request was fed again what it had stored."""
        stored: dict[int, int] = {}
        count = 0
        for plan in self.plans:
            for window in plan.windows:
                count += window.span.start < stored.get(window.request_id, 0)
                stored[window.request_id] = window.span.store_until
        return count

    def entropies(self) -> list[np.typing.NDArray[np.floating]]:
        """[n] of every canvas step, in order."""
        return [
            decision.entropy
            for plan, output in zip(self.plans, self.outputs, strict=True)
            for window, decision in zip(plan.windows, output.decisions, strict=True)
            if window.span.groups and isinstance(decision, CanvasDecision)
        ]

    def rows(self) -> int:
        """Rows that were fed altogether."""
        return sum(plan.rows for plan in self.plans)
