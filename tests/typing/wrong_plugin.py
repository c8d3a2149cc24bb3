"""Mistakes that a type checker must see: each is marked with its error, and no mark is superfluous."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from diffulex_core.plugin import (
    AttentionBackend,
    AttentionBatch,
    AttentionPattern,
    Capability,
    Component,
    DecodingStrategy,
    EngineConfig,
    Extent,
    IntArray,
    ModelFamily,
    Register,
    Req,
    ReqFactory,
    Sampler,
    SamplerTraits,
    SamplingParams,
    Span,
    key,
)
from diffulex_core.testing import parametrize_with_checks


def register_models(register: Register[ModelFamily]) -> None:
    family = ModelFamily(name="m", build="m:build", weights="m:WEIGHTS")
    register(family)
    register("m")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ModelFamily("m", "m:build", "m:WEIGHTS")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ModelFamily(name="m", build="m:build")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ModelFamily(
        name="m",
        build="m:build",
        weights="m:WEIGHTS",
        logits="diagonal",  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    )
    ModelFamily(
        name="m",
        build="m:build",
        weights="m:WEIGHTS",
        architecture=("M",),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    )
    ModelFamily(
        name="m",
        build="m:build",
        weights="m:WEIGHTS",
        aliases=["n"],  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    )
    family.name = "n"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    SamplerTraits(force_rule="never")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def register_strategies(register: Register[DecodingStrategy]) -> None:
    register(ModelFamily(name="m", build="m:b", weights="m:w"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    DecodingStrategy(name="s", pattern=4)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    requires: set[str] = {Capability.TELEPATHY}  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    DecodingStrategy(name="s", pattern="m:p", requires=requires)


def register_components(register: Register[Component]) -> None:
    Component(kind="oracle", name="c", factory="m:c")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def validate_config(config: EngineConfig) -> Sequence[str]:
    config.model.dtype = "float16"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    return [config.family.nmae]  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]


class NoScale:
    """An attention backend without the argument `scale`."""

    def attend(self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch) -> Tensor:
        return query


class NoDependency:
    """A pattern that does not say what K/V depend on."""

    block_size = 4
    two_phase = False

    def key_start(self, positions: IntArray, extent: Extent, window: int) -> IntArray:
        return positions

    def key_end(self, positions: IntArray, extent: Extent) -> IntArray:
        return positions + 1


class OneDecision:
    """A sampler that returns a tensor."""

    def sample(self, logits: Tensor, batch: object) -> Tensor:
        return logits


def without_context(*, request_id: int, prompt: IntArray, params: SamplingParams) -> Req:
    raise NotImplementedError


backend: AttentionBackend = NoScale()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
pattern: AttentionPattern = NoDependency()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
sampler: Sampler = OneDecision()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
factory: ReqFactory = without_context  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


def half_a_span(tokens: IntArray) -> Span:
    return Span(start=0, tokens=tokens)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


key(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


@parametrize_with_checks("m", expected_failures=["check_x"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def test_conformance(check: object) -> None:
    del check
