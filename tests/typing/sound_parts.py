"""Implementations of protocols as strangers write them, and core's own: type checkers find nothing to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from torch import Tensor

from diffulex_core.attention.reference import TorchReference
from diffulex_core.blocks import BlockRequest
from diffulex_core.context import BuildContext
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.layers import DecoderSpec, build_decoder
from diffulex_core.plugin import (
    AttentionBackend,
    AttentionBatch,
    AttentionCase,
    AttentionPattern,
    BlockCausal,
    CachePolicy,
    Decision,
    DiffusionModel,
    Extent,
    FullPrefix,
    IntArray,
    KVCacheManager,
    Refresh,
    Req,
    ReqContext,
    ReqFactory,
    Sampler,
    SamplingBatch,
    SamplingParams,
    Scheduler,
    WeightResolver,
)
from diffulex_core.sampling import PackedSampler
from diffulex_core.scheduler import ContinuousScheduler
from diffulex_core.testing import Effort, KVCacheConformance, check, parametrize_with_checks
from diffulex_core.testing.subjects import KVCacheSubject, MakeKVCache, MakeSampler, MakeScheduler, SchedulerSubject
from diffulex_core.weights import LoadContext, Rename, ResolvedWeight, WeightRules


class Causal:
    """Every position sees itself and what stands before it."""

    block_size = 1
    two_phase = False

    def key_start(self, positions: IntArray, extent: Extent, window: int) -> IntArray:
        return np.maximum(positions - window + 1, 0)

    def key_end(self, positions: IntArray, extent: Extent) -> IntArray:
        return positions + 1

    def dependency_end(self, position: int, prompt_len: int) -> int:
        return position + 1

    def sharing_scope(self, prompt_len: int) -> int:
        return 0


class Zeros:
    """Attends to nothing."""

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        return query * 0


class First:
    """A sampler that accepts nothing."""

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Sequence[Decision]:
        nothing = np.empty(0, dtype=np.int64)
        none = Decision(
            positions=nothing,
            tokens=nothing,
            confidence=np.empty(0, dtype=np.float32),
            accepted=np.empty(0, dtype=np.bool_),
        )
        return [none for _ in batch.windows]


class Recent:
    """Keeps the last rows."""

    def keep(self, layer: int, query: Tensor, key: Tensor, refresh: Refresh) -> Tensor:
        return key[:, :, 0].argsort(0).T[:, -refresh.keep :]


class ByHand:
    """Assigns every tensor to the parameter of its own name."""

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        return None


def probe(case: AttentionCase) -> list[str]:
    return [] if case.head_dim % 16 == 0 else [f"head_dim is {case.head_dim}, not a multiple of 16"]


def build(config: dict[str, Any], ctx: BuildContext) -> DiffusionModel:
    spec = DecoderSpec(
        vocab_size=config["vocab_size"],
        hidden_size=config["d_model"],
        num_layers=config["n_layers"],
        num_heads=config["n_heads"],
        num_kv_heads=config["n_kv_heads"],
        ffn_size=config["mlp_hidden_size"],
        rope_theta=config["rope_theta"],
    )
    return build_decoder(spec, ctx)


def request(*, request_id: int, prompt: IntArray, params: SamplingParams, context: ReqContext) -> Req:
    return BlockRequest(request_id=request_id, prompt=prompt, params=params, context=context)


patterns: Sequence[AttentionPattern] = (Causal(), BlockCausal(block_size=4), FullPrefix(block_size=4))
backends: Sequence[AttentionBackend] = (Zeros(), TorchReference())
samplers: Sequence[Sampler] = (First(), PackedSampler(vocab_size=8, forbidden=frozenset({7})))
policy: CachePolicy = Recent()
resolvers: Sequence[WeightResolver] = (ByHand(), WeightRules(Rename("a.weight", "b.weight")))
factory: ReqFactory = request
cache: KVCacheManager = PagedKVCache(num_pages=4, page_size=4, pattern=Causal(), prefix_caching=True)
scheduler: Scheduler = ContinuousScheduler(cache, max_num_reqs=2, max_num_batched_tokens=64, block_size=1)
make_cache: MakeKVCache = PagedKVCache
make_scheduler: MakeScheduler = ContinuousScheduler
make_sampler: MakeSampler = PackedSampler
subject = SchedulerSubject(name="mine", factory=ContinuousScheduler, kv_cache=PagedKVCache)


@check(KVCacheSubject, level="recommended")
def check_something(subject: KVCacheSubject, effort: Effort) -> None:
    subject.factory(num_pages=effort.examples(), page_size=4, pattern=Causal(), prefix_caching=False)


class TestMyCache(KVCacheConformance):
    expected_failures: ClassVar[Mapping[str, str]] = {"check_something": "not yet"}

    @pytest.fixture
    def kv_cache_factory(self) -> MakeKVCache:
        return PagedKVCache


expected: Mapping[str, str] = {"check_something": "not yet"}


@parametrize_with_checks("mymodel", expected_failures=expected)
def test_conformance(check: Any) -> None:
    check()
