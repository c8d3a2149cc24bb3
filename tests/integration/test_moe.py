"""Engines whose network has experts: the kernel that computes them, and the family that config.json names."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from diffulex_core.engine import Diffulex
from diffulex_core.errors import ConfigError, IncompatibleError
from diffulex_core.host import Host
from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.moe.grouped import TorchExperts
from diffulex_core.plugin import Component, hookimpl
from diffulex_core.sampling_params import SamplingParams
from tests.integration.engines import PARITY, SETTINGS, engine, prompt

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=24)


def answer(**settings: Any) -> list[int]:
    with engine("llada2", **settings) as ready:
        [found] = ready.generate([prompt(19)], GREEDY)
    return list(found.token_ids)


def test_the_family_is_inferred_and_every_kernel_decodes_the_same_tokens() -> None:
    tokens = answer()
    assert len(tokens) == 24
    assert 280 not in tokens
    for name in ("torch", "naive"):
        assert answer(moe_gemm_impl=name, model_name="llada2_mini") == tokens


def test_a_kernel_that_cannot_serve_stops_a_network_with_experts_before_its_weights_are_read() -> None:
    with pytest.raises(IncompatibleError, match=r"moe_gemm_impl='triton' cannot serve here: it runs on CUDA devices"):
        engine("llada2", moe_gemm_impl="triton")
    with engine("llada", moe_gemm_impl="triton") as ready:
        assert ready.generate([prompt(3)], SamplingParams(max_tokens=1, temperature=0.0))


@pytest.mark.parametrize("name", ["cutlass", "vllm"])
def test_a_kernel_that_does_not_exist_is_refused_for_every_network(name: str) -> None:
    with pytest.raises(ConfigError, match=f"moe_gemm_impl is '{name}'"):
        engine("llada", moe_gemm_impl=name)


class Counting:
    """A plugin's kernel."""

    calls = 0

    def reasons(self, case: KernelCase) -> list[str]:
        return [] if case == KernelCase(device_type="cpu", dtype=torch.float32) else ["it counts on the CPU only"]

    def priority(self, case: KernelCase) -> int:
        return -1

    def __call__(self, *args: Any) -> Tensor:
        type(self).calls += 1
        return TorchExperts()(*args)


def test_a_plugins_kernel_is_used_when_it_is_named() -> None:
    module = ModuleType("counting_plugin")

    @hookimpl
    def diffulex_register_components(register: Any) -> None:
        factory = f"{__name__}:Counting"
        register(Component(kind="kernel", name="moe_gemm.counting", factory=factory, aliases=("moe_gemm.count",)))

    vars(module)["diffulex_register_components"] = diffulex_register_components
    plugins = Host.discover(environ={}, extra=[module])
    Counting.calls = 0
    with Diffulex(
        PARITY / "checkpoints" / "llada2", host=plugins, strict=True, **{**SETTINGS, "moe_gemm_impl": "count"}
    ) as ready:
        [found] = ready.generate([prompt(19)], GREEDY)
        assert ready.config.runtime.moe_gemm_impl == "counting"
    assert Counting.calls >= found.nfe
    assert list(found.token_ids) == answer()


def test_half_precision_decodes() -> None:
    assert len(answer(dtype="bfloat16")) == 24
