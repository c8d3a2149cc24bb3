"""Operations of the layers that a device computes better in one kernel (`layer_impl`)."""

from diffulex_core.kernels.case import KernelCase
from diffulex_core.kernels.layers.contract import HeadNorms, LayerKernels
from diffulex_core.kernels.layers.select import select_layer_kernels

__all__ = ["HeadNorms", "KernelCase", "LayerKernels", "select_layer_kernels"]
