"""Kernels of the layers, chosen by name: an engine that has them answers as one that has none."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import pytest

from diffulex_core.engine import Diffulex
from diffulex_core.errors import ConfigError, IncompatibleError
from diffulex_core.host import Host
from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.layers import select_layer_kernels
from diffulex_core.plugin import Component, hookimpl
from diffulex_core.sampling_params import SamplingParams
from tests.integration.engines import PARITY, SETTINGS, engine, prompt
from tests.integration.twin_kernels import TwinKernels

GREEDY = SamplingParams(temperature=0.0, max_tokens=20)


@cache
def plugins() -> Host:
    module = ModuleType("twin_plugin")

    @hookimpl
    def diffulex_register_components(register: Any) -> None:
        factory = "tests.integration.twin_kernels:TwinKernels"
        register(Component(kind="layer_kernels", name="twin", factory=factory, aliases=("double",)))

    vars(module)["diffulex_register_components"] = diffulex_register_components
    return Host.discover(environ={}, extra=[module])


def with_twins(checkpoint: str = "llada", **settings: Any) -> Diffulex:
    folder = PARITY / "checkpoints" / checkpoint
    return Diffulex(folder, host=plugins(), strict=True, **{**SETTINGS, "layer_impl": "double", **settings})


def answers(ready: Diffulex, *params: SamplingParams) -> list[tuple[list[int], int]]:
    found = ready.generate([prompt(11 + at, at) for at in range(len(params))], list(params))
    return [(list(each.token_ids), each.nfe) for each in found]


def both(*params: SamplingParams, checkpoint: str = "llada", **settings: Any) -> tuple[Any, Any]:
    """Answers with twins and without."""
    TwinKernels.calls.clear()
    with with_twins(checkpoint, **settings) as ready:
        ours = answers(ready, *params)
        assert ready.config.runtime.layer_impl == "twin"
    with engine(checkpoint, **settings) as ready:
        return ours, answers(ready, *params)


def test_greedy_answers_are_the_same_without_logits() -> None:
    ours, theirs = both(GREEDY, GREEDY)
    assert ours == theirs
    assert set(TwinKernels.calls) == {"normed", "add_and_norm", "gated", "turn_and_store", "select"}


def test_who_needs_logits_gets_them_beside_others_that_do_not() -> None:
    params = [
        GREEDY,
        SamplingParams(temperature=0.0, max_tokens=20, confidence="margin"),
        SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=20),
        SamplingParams(temperature=0.0, max_tokens=20, confidence="neg_entropy"),
        SamplingParams(temperature=0.0, max_tokens=20, logit_bias={17: 2.0}),
        SamplingParams(temperature=0.0, max_tokens=20, top_k=5),
    ]
    ours, theirs = both(*params, max_logits_tokens=5)
    assert ours == theirs
    alone, _ = both(params[0])
    few = TwinKernels.calls["select"]
    together, _ = both(*params[:1], *params[2:3])
    assert together[0] == alone[0]
    assert TwinKernels.calls["select"] == few > 0


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0.0, "logprobs": 2},
        {"temperature": 0.7, "top_k": 4, "seed": 5},
        {"temperature": 0.7, "top_k": 3, "min_p": 0.1, "seed": 5, "logprobs": 1},
    ],
    ids=["logprobs", "top_k", "all"],
)
def test_log_probabilities_and_few_tokens_to_draw_from_need_no_logits(asked: dict[str, Any]) -> None:
    ours, theirs = both(SamplingParams(max_tokens=12, **asked), skip_warmup=True)
    assert ours == theirs
    assert TwinKernels.calls["select"] > 0


def test_what_is_drawn_from_all_tokens_needs_them() -> None:
    ours, theirs = both(
        SamplingParams(max_tokens=8, temperature=0.7, seed=5),
        SamplingParams(max_tokens=8, temperature=0.7, seed=5, top_p=0.9, top_k=3),
        skip_warmup=True,
    )
    assert ours == theirs
    assert TwinKernels.calls["select"] == 0


@pytest.mark.parametrize(
    ("checkpoint", "strategy", "called"),
    [("llada2", "multi_bd", "route"), ("llada2", "dmax", "blend"), ("sdar", "multi_bd", "normed")],
)
def test_experts_merges_and_normalised_heads_are_the_same(checkpoint: str, strategy: str, called: str) -> None:
    ours, theirs = both(GREEDY, GREEDY, checkpoint=checkpoint, decoding_strategy=strategy)
    assert ours == theirs
    assert TwinKernels.calls[called] > 0
    assert TwinKernels.calls["select"] > 0


def test_guided_rows_are_joined_from_logits() -> None:
    ours, theirs = both(
        SamplingParams(temperature=0.0, max_tokens=16, steps=8, cfg_scale=1.5),
        SamplingParams(temperature=0.0, max_tokens=16, steps=8),
        decoding_strategy="llada_canvas",
    )
    assert ours == theirs
    assert TwinKernels.calls["select"] > 0


def test_kernels_are_for_devices_unless_they_are_named() -> None:
    case = KernelCase(device_type="cpu", dtype=None)  # type: ignore[arg-type]
    assert select_layer_kernels("torch", plugins(), case) is None
    assert select_layer_kernels("auto", plugins(), case) is None
    assert isinstance(select_layer_kernels("twin", plugins(), case), TwinKernels)


def test_a_name_that_cannot_serve_is_an_error_with_its_reason() -> None:
    with pytest.raises(IncompatibleError, match=r"layer_impl='triton' cannot serve here: it runs on CUDA .*'torch'"):
        engine(layer_impl="triton")
    with pytest.raises(ConfigError, match=r"layer_impl.*tritton.*triton"):
        engine(layer_impl="tritton")
