"""Stages as named ranges of the torch profiler's trace."""

from __future__ import annotations

import torch


class TraceRanges:
    """A `StageWatch`: every stage becomes a range `diffulex.<stage>`, and ends when the device is done with it."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._open: list[torch.profiler.record_function] = []

    def enter(self, stage: str) -> None:
        named = torch.profiler.record_function(f"diffulex.{stage}")
        named.__enter__()
        self._open.append(named)

    def leave(self) -> None:
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        self._open.pop().__exit__(None, None, None)
