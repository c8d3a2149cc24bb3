"""Steps of static shape: buckets, static buffers, and what captures and replays them. Imported on use."""

from diffulex_core.graphs.buckets import Bucket, Limits
from diffulex_core.graphs.capture import CudaGraphs, Graphs, NotCapturable, Rerun
from diffulex_core.graphs.forward import EagerForward, Forward, StaticForward

__all__ = [
    "Bucket",
    "CudaGraphs",
    "EagerForward",
    "Forward",
    "Graphs",
    "Limits",
    "NotCapturable",
    "Rerun",
    "StaticForward",
]
