"""Operations of the layers that a device computes better in one kernel (`layer_impl`)."""

from diffulex_core.kernels.layers.contract import HeadNorms, LayerCase, LayerKernels
from diffulex_core.kernels.layers.select import select_layer_kernels

__all__ = ["HeadNorms", "LayerCase", "LayerKernels", "select_layer_kernels"]
