"""The experts' matrix products (`moe_gemm_impl`)."""

from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.moe.contract import ExpertsKernel
from diffulex_core.kernels.moe.select import MOE_GEMM, select_experts_kernel

__all__ = ["MOE_GEMM", "ExpertsKernel", "KernelCase", "select_experts_kernel"]
