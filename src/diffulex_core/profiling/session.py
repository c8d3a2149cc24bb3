"""A recording of one process by the torch profiler: when it runs, and the files that it leaves."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import attrs
import torch
from torch.profiler import ProfilerAction, ProfilerActivity

from diffulex_core.config.sections import ProfilerConfig
from diffulex_core.profiling.summary import write_summary

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Recording:
    """What every process of an engine records; it can be pickled.

    Attributes:
        config: what is recorded, and when.
        name: first part of the names of all files.
    """

    config: ProfilerConfig
    name: str

    def path(self, component: str, ending: str) -> Path:
        """The file of one process."""
        return Path(self.config.torch_profiler_dir) / f"{self.name}.{component}.{ending}"


class ProfileSession:
    """Records the steps of this process from now on, as the recording's schedule says."""

    def __init__(self, recording: Recording, component: str) -> None:
        """
        Args:
            recording: what to record.
            component: what this process is called in the names of its files: `engine`, `model_runner.rank0`.
        """
        config = recording.config
        self._recording, self._component = recording, component
        self._files: list[Path] = []
        self._recordings = 0
        self._steps = 0
        period = config.delay_iterations + config.warmup_iterations + config.max_iterations
        self._last = config.repeat * period if config.max_iterations else 0
        self._profiler: torch.profiler.profile | None = torch.profiler.profile(
            activities=_activities(config),
            schedule=schedule_of(config),
            on_trace_ready=self._write,
            record_shapes=config.record_shapes,
            profile_memory=config.profile_memory,
            with_stack=config.with_stack,
            with_flops=config.with_flops,
            with_modules=config.with_modules,
        )
        _quietly(self._profiler.start)

    def step(self) -> bool:
        """A step is over. Returns False once the schedule is at its end, when all files are written."""
        if self._profiler is not None:
            self._steps += 1
            if self._steps == self._last:
                self.stop()
            else:
                _quietly(self._profiler.step)
        return self._profiler is not None

    def stop(self) -> tuple[Path, ...]:
        """End it. Returns the files written, those of earlier repetitions included; none when no step was recorded."""
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            _quietly(profiler.stop)
        return tuple(self._files)

    def _write(self, profiler: torch.profiler.profile) -> None:
        self._recordings += 1
        again = "" if self._recordings == 1 else f".{self._recordings}"
        component = f"{self._component}{again}"
        formats = self._recording.config.formats
        try:
            for ending in [ending for ending in ("trace.json", "trace.json.gz") if ending in formats]:
                path = self._recording.path(component, ending)
                profiler.export_chrome_trace(str(path))
                if not path.is_file():  # a plain trace that cannot be written is no error of torch's
                    raise OSError(f"{path} could not be written")
                self._files.append(path)
            if "summary" in formats:
                self._files += write_summary(profiler, lambda ending: self._recording.path(component, ending))
        except (OSError, RuntimeError, ValueError) as error:
            _log.warning("The profile of %s could not be written: %s", component, error)
            path = self._recording.path(component, "error.txt")
            path.write_text(f"{type(error).__name__}: {error}\n", encoding="utf-8")
            self._files.append(path)


def schedule_of(config: ProfilerConfig) -> Callable[[int], ProfilerAction]:
    """What the profiler does in step n: wait, warm up, record, and all of that as often as asked for."""
    quiet = config.delay_iterations + config.warmup_iterations
    period = quiet + config.max_iterations

    def action(step: int) -> ProfilerAction:
        if config.max_iterations == 0:
            at = step
        elif config.repeat and step >= config.repeat * period:
            return ProfilerAction.NONE
        else:
            at = step % period
        if at < config.delay_iterations:
            return ProfilerAction.NONE
        if at < quiet:
            return ProfilerAction.WARMUP
        return ProfilerAction.RECORD_AND_SAVE if at == period - 1 else ProfilerAction.RECORD

    return action


def _quietly(call: Callable[[], object]) -> None:
    """Call a method of the profiler, which warns that one recording holds nothing of the one before it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Profiler clears events", category=UserWarning)
        call()


def _activities(config: ProfilerConfig) -> list[ProfilerActivity]:
    wanted = config.activities or (("cpu", "cuda") if config.use_cuda else ("cpu",))
    activities = [ProfilerActivity.CPU] if "cpu" in wanted else []
    if "cuda" in wanted and torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    return activities or [ProfilerActivity.CPU]
