"""An observer of core: a JSON-lines trace of every step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from diffulex_core.errors import ConfigError
from diffulex_core.types import CompletionReason, StepOutput, StepPlan


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
        self._write({"event": "step", "step": plan.step, "seconds": seconds, "forward": output.how, "windows": windows})

    def on_request_finished(self, request_id: int, reason: CompletionReason) -> None:
        self._write({"event": "finished", "request": request_id, "reason": reason.value})

    def close(self) -> None:
        self._file.close()

    def _write(self, event: dict[str, object]) -> None:
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()
