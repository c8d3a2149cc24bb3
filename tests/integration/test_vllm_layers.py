"""`enable_vllm_layers`: whether `auto` may take the kernels that a plugin registers as `vllm`."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import pytest

from diffulex_core.engine import Diffulex
from diffulex_core.host import Host
from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.layers import select_layer_kernels
from diffulex_core.kernels.moe import select_experts_kernel
from diffulex_core.kernels.moe.grouped import TorchExperts
from diffulex_core.plugin import Component, hookimpl
from diffulex_core.sampling_params import SamplingParams
from tests.integration.engines import PARITY, SETTINGS, prompt
from tests.integration.foremost_kernels import Foremost, ForemostExperts
from tests.integration.twin_kernels import TwinKernels

ON_CPU = KernelCase(device_type="cpu", dtype=None)  # type: ignore[arg-type]
FEW = SamplingParams(temperature=0.0, max_tokens=4)


@cache
def plugins() -> Host:
    module = ModuleType("vllm_plugin")

    @hookimpl
    def diffulex_register_components(register: Any) -> None:
        here = "tests.integration.foremost_kernels"
        register(Component(kind="layer_kernels", name="vllm", factory=f"{here}:Foremost"))
        register(Component(kind="kernel", name="moe_gemm.vllm", factory=f"{here}:ForemostExperts"))

    vars(module)["diffulex_register_components"] = diffulex_register_components
    return Host.discover(environ={}, extra=[module])


@pytest.mark.parametrize(
    ("settings", "used"),
    [
        ({}, True),
        ({"enable_vllm_layers": False}, False),
        ({"enable_vllm_layers": False, "layer_impl": "vllm"}, True),
        ({"layer_impl": "torch"}, False),
    ],
    ids=["allowed", "barred", "barred and named", "another one is named"],
)
def test_an_engine_runs_on_them_where_it_may(settings: dict[str, Any], used: bool) -> None:
    TwinKernels.calls.clear()
    with Diffulex(PARITY / "checkpoints" / "llada", host=plugins(), strict=True, **{**SETTINGS, **settings}) as made:
        made.generate([prompt(5)], FEW)
    assert bool(TwinKernels.calls) == used


def test_experts_and_layers_follow_one_rule() -> None:
    barred = ("vllm",)
    assert isinstance(select_layer_kernels("auto", plugins(), ON_CPU), Foremost)
    assert select_layer_kernels("auto", plugins(), ON_CPU, barred=barred) is None
    assert isinstance(select_experts_kernel("auto", plugins(), ON_CPU), ForemostExperts)
    assert type(select_experts_kernel("auto", plugins(), ON_CPU, barred=barred)) is TorchExperts
    assert isinstance(select_experts_kernel("vllm", plugins(), ON_CPU, barred=barred), ForemostExperts)
