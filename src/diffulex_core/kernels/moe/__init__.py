"""The experts' matrix products (`moe_gemm_impl`)."""

from diffulex_core.kernels.moe.contract import ExpertsCase, ExpertsKernel
from diffulex_core.kernels.moe.select import MOE_GEMM, select_experts_kernel

__all__ = ["MOE_GEMM", "ExpertsCase", "ExpertsKernel", "select_experts_kernel"]
