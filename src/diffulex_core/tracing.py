"""Observers of core: a JSON-lines trace of every step, and the torch profiler."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch

from diffulex_core.errors import ConfigError
from diffulex_core.types import CompletionReason, StepOutput, StepPlan

if TYPE_CHECKING:
    from diffulex_core.config.sections import ProfilerConfig


class JsonTrace:
    """Writes one JSON object per event to a file as it happens; memory use does not grow with the run."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = path.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                [f"trace_path is {str(path)!r}: {error.strerror}. Name a file that can be written."]
            ) from error

    def on_request_added(self, request_id: int) -> None:
        self._write({"event": "added", "request": request_id})

    def on_step(self, plan: StepPlan, output: StepOutput, seconds: float) -> None:
        windows = [
            {
                "request": window.request_id,
                "start": window.span.start,
                "rows": window.span.rows,
                "catch_up": window.span.catch_up,
                "store_until": window.span.store_until,
                "positions": decision.positions[decision.accepted].tolist(),
                "tokens": decision.tokens[decision.accepted].tolist(),
                "confidence": [round(float(value), 6) for value in decision.confidence[decision.accepted]],
            }
            for window, decision in zip(plan.windows, output.decisions, strict=True)
        ]
        self._write({"event": "step", "step": plan.step, "seconds": seconds, "windows": windows})

    def on_request_finished(self, request_id: int, reason: CompletionReason) -> None:
        self._write({"event": "finished", "request": request_id, "reason": reason.value})

    def close(self) -> None:
        self._file.close()

    def _write(self, event: dict[str, object]) -> None:
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()


class TorchProfiler:
    """Profiles engine steps with torch.profiler and writes one Chrome trace for each recording.

    A recording begins `delay_iterations` steps after `start` and ends at `stop`, at `close`, or after `max_iterations`
    steps when that is not 0.
    """

    def __init__(self, config: ProfilerConfig) -> None:
        """
        Raises:
            ConfigError: the directory of the traces cannot be made.
        """
        self._config = config
        self._folder = Path(config.torch_profiler_dir)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"torch_profiler_dir is {config.torch_profiler_dir!r}: {error.strerror}"
            raise ConfigError([f"{what}. Name a directory that can be written."]) from error
        self._profiler: torch.profiler.profile | None = None
        self._name = ""
        self._waiting: int | None = None
        self._recorded = 0

    def start(self, prefix: str | None = None) -> None:
        """Begin a recording called `prefix`, else the configured `run_id`, else the time."""
        self.stop()
        self._name = prefix or self._config.run_id or datetime.now().strftime("%Y%m%d_%H%M%S")
        self._waiting = self._config.delay_iterations
        self._recorded = 0
        if self._waiting == 0:
            self._begin()

    def stop(self) -> Path | None:
        """End the recording; returns the trace's path, or None when nothing was recorded."""
        self._waiting = None
        if self._profiler is None:
            return None
        self._profiler.stop()
        path = self._folder / f"{self._name}.json"
        self._profiler.export_chrome_trace(str(path))
        self._profiler = None
        return path

    def on_request_added(self, request_id: int) -> None:
        """Requests leave no mark in the trace."""

    def on_step(self, plan: StepPlan, output: StepOutput, seconds: float) -> None:
        if self._profiler is not None:
            self._recorded += 1
            if self._recorded == self._config.max_iterations:
                self.stop()
        elif self._waiting is not None:
            self._waiting -= 1
            if self._waiting <= 0:
                self._begin()

    def on_request_finished(self, request_id: int, reason: CompletionReason) -> None:
        """Requests leave no mark in the trace."""

    def close(self) -> None:
        self.stop()

    def _begin(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._config.use_cuda and torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities,
            record_shapes=self._config.record_shapes,
            profile_memory=self._config.profile_memory,
            with_stack=self._config.with_stack,
            with_modules=self._config.with_modules,
        )
        self._profiler.start()
        self._waiting = None
