"""The experts' matrix products (`moe_gemm_impl`)."""

from diffulex_core.kernels.moe.contract import ExpertsCase, ExpertsKernel
from diffulex_core.kernels.moe.select import MOE_GEMM, probe_experts_kernels, select_experts_kernel

__all__ = ["MOE_GEMM", "ExpertsCase", "ExpertsKernel", "probe_experts_kernels", "select_experts_kernel"]
