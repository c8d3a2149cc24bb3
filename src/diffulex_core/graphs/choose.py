"""Which way the forwards of an engine run, as its configuration and its device have it."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import torch

from diffulex_core.distributed import Communicator
from diffulex_core.graphs.buckets import MOST_ROWS, Limits
from diffulex_core.graphs.capture import CudaGraphs, Graphs, Rerun
from diffulex_core.graphs.forward import EagerForward, Forward, Network, StaticForward
from diffulex_core.padding import round_up

if TYPE_CHECKING:
    from diffulex_core.config import EngineConfig

_log = logging.getLogger(__name__)
_WITHOUT_CUDAGRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""torch.compile's modes that capture graphs of their own, and the same without, for what is captured here."""


def choose_forward(
    network: Network, config: EngineConfig, *, device: torch.device, tp: Communicator, graphs: Graphs | None = None
) -> Forward:
    """Eager steps, or steps of static shape.

    Args:
        network: the network.
        config: the configuration.
        device: where the network runs.
        tp: the processes that share each layer.
        graphs: captures steps; None = CUDA graphs on CUDA devices, elsewhere what compiled steps are run by.
    Raises:
        ConfigError: torch.compile is asked for, and cannot run here.
    """
    limits = limits_of(config)
    compiles = _compiles(config)
    if limits is None:
        return EagerForward(network)
    if graphs is None:
        graphs = _graphs(config, device, tp, compiles=compiles)
    if graphs is None:
        return EagerForward(network)
    captured: Network | None = None
    if compiles:
        from diffulex_core.graphs.compiled import CompiledNetwork, require_compiler

        require_compiler(device)
        wanted = config.runtime.torch_compile_mode
        mode = wanted if graphs.runs_host else _WITHOUT_CUDAGRAPHS.get(wanted, wanted)
        captured = CompiledNetwork(network, partial(torch.compile, mode=mode, dynamic=False), mode=wanted)
    return StaticForward(network=network, graphs=graphs, limits=limits, captured=captured)


def limits_of(config: EngineConfig) -> Limits | None:
    """The largest static shapes; None where steps are to run eagerly."""
    runtime, page_size = config.runtime, config.cache.page_size
    if runtime.enforce_eager or not runtime.enable_full_static_runner:
        return None
    # The last block may reach past the longest sequence.
    slots = config.schedule.max_model_len + config.decoding.block_size * config.decoding.buffer_size
    return Limits(
        decode_rows=MOST_ROWS,
        prefill_rows=round_up(runtime.prefill_cudagraph_max_len) if runtime.enable_prefill_cudagraph else 0,
        pages=-(-slots // page_size),
    )


def _compiles(config: EngineConfig) -> bool:
    return config.runtime.enable_torch_compile and config.runtime.enable_cudagraph_torch_compile


def _graphs(config: EngineConfig, device: torch.device, tp: Communicator, *, compiles: bool) -> Graphs | None:
    if device.type != "cuda":
        return Rerun() if compiles else None
    if tp.size > 1:
        from diffulex_core.distributed.torch_group import choose_library

        if choose_library(config.parallel.distributed_backend, device) != "nccl":
            _log.warning("Steps are not captured but run eagerly, because gloo exchanges tensors on the host.")
            return None
    return CudaGraphs(device)
