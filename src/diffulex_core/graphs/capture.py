"""What turns a forward over static buffers into something that can be repeated: CUDA graphs, or running it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from diffulex_core.graphs.waits import WaitsAreRefused

Replay = Callable[[], Tensor]
"""Computes a captured forward over what its static buffers hold now; always returns the same tensor."""


class NotCapturable(Exception):
    """A forward does something that a graph does not hold; the text says what."""


class Graphs(Protocol):
    """Captures forwards. What it captures may not be replayed by two threads, and one replay ends the one before."""

    @property
    def runs_host(self) -> bool:
        """Whether a replay runs the host's part of the forward as well, or the device's alone."""
        ...

    def capture(self, run: Callable[[], Tensor]) -> Replay:
        """Make `run`, a forward over static buffers, repeatable; it may be run several times for that.

        Raises:
            NotCapturable: it does something that a replay would not repeat.
        """
        ...


class CudaGraphs:
    """CUDA graphs that share one memory pool, since no two of them ever run at once."""

    runs_host = False

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, run: Callable[[], Tensor]) -> Replay:
        """See `Graphs`. Warm-up and capture take a stream of their own, as CUDA asks for."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            with WaitsAreRefused(NotCapturable):
                run()
            run()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                out = run()
        except RuntimeError as error:
            raise NotCapturable(f"CUDA refuses it ({error})") from error

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


class Rerun:
    """Runs the forward again over its static buffers: the path of graphs without a device that has them.

    Attributes:
        captures, replays: how often each was done.
    """

    runs_host = True

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    def capture(self, run: Callable[[], Tensor]) -> Replay:
        """See `Graphs`. As with a graph, every replay writes its result into the same tensor."""
        out = run().clone()
        self.captures += 1

        def replay() -> Tensor:
            self.replays += 1
            return out.copy_(run())

        return replay
