"""The names of kernels: ones that plugins register, or why a name of Diffulex 0.1 stands for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from diffulex_core.config.settle import Report, Setting
from diffulex_core.errors import PluginError, UnknownNameError
from diffulex_core.kernels.layers.select import TORCH
from diffulex_core.kernels.moe import MOE_GEMM

if TYPE_CHECKING:
    from diffulex_core.host import Host

VLLM = ("vllm", "vllm_modular")


def name_experts_kernel(settings: dict[str, Setting], host: Host, report: Report) -> None:
    """Replace an alias by the kernel's name, in place, and note a name that nobody registers."""
    setting, kernels = settings["moe_gemm_impl"], host.components["kernel"]
    if setting.value == "auto" or "moe_gemm_impl" in report.unusable:
        return
    name = MOE_GEMM + setting.value
    if setting.value in VLLM and name not in kernels:
        report.problems.append(
            setting.problem(
                "vLLM's kernels are not part of diffulex; use 'triton' on CUDA devices, 'torch' elsewhere, leave the "
                f"choice to 'auto', or install a plugin that registers the kernel {name!r}"
            )
        )
        return
    try:
        settings["moe_gemm_impl"] = attrs.evolve(setting, value=kernels.get(name).name.removeprefix(MOE_GEMM))
    except (UnknownNameError, PluginError) as error:
        report.problems.append(setting.problem(str(error).rstrip(".")))


def name_layer_kernels(settings: dict[str, Setting], host: Host, report: Report) -> None:
    """The same for the kernels of the layers' other operations."""
    setting = settings["layer_impl"]
    if setting.value in ("auto", TORCH) or "layer_impl" in report.unusable:
        return
    try:
        name = host.components["layer_kernels"].get(setting.value).name
        settings["layer_impl"] = attrs.evolve(setting, value=name)
    except (UnknownNameError, PluginError) as error:
        report.problems.append(setting.problem(str(error).rstrip(".")))
