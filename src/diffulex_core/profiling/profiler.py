"""An engine's profiler: starts and ends the recordings of its own process and of its workers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import torch

from diffulex_core.config.checks import check_values, profiler_has_a_place
from diffulex_core.config.convert import as_mapping
from diffulex_core.config.keys import Origin
from diffulex_core.config.layers import Given, expand_group
from diffulex_core.config.schema import build_schema, core_sections
from diffulex_core.config.sections import ProfilerConfig
from diffulex_core.config.settle import Report, settle
from diffulex_core.errors import ConfigError, NoProfiler, WorkerError
from diffulex_core.profiling.ranges import TraceRanges
from diffulex_core.profiling.ring import StepRing
from diffulex_core.profiling.session import ProfileSession, Recording
from diffulex_core.profiling.stages import StageClock
from diffulex_core.profiling.table import write_steps
from diffulex_core.protocols import ModelRunner, ProfiledExecutor
from diffulex_core.types import CompletionReason, StepOutput, StepPlan

_log = logging.getLogger(__name__)

_GROUP = "profiler_config"


class EngineProfiler:
    """Records an engine's steps, one recording at a time. An `Observer`, so that it sees every step."""

    def __init__(self, config: ProfilerConfig, *, executor: ModelRunner, steps: StepRing, clock: StageClock) -> None:
        """
        Args:
            config: what `start` uses where it is given nothing else.
            executor: runs the network; asked to record, too, where it can (`ProfiledExecutor`).
            steps: times of the latest steps.
            clock: of the engine's own stages.
        Raises:
            ConfigError: the directory of the recordings cannot be made.
        """
        self._config, self._steps, self._clock = config, steps, clock
        self._executor = executor if isinstance(executor, ProfiledExecutor) else None
        self._recording: Recording | None = None
        self._session: ProfileSession | None = None
        self._before = 0
        self._written: tuple[Path, ...] = ()
        if config.profiler is not None:
            _make_folder(config)

    def start(self, prefix: str | None, config: ProfilerConfig | Mapping[str, Any] | None) -> None:
        """See `Diffulex.start_profile`."""
        chosen = self._config if config is None else read_config(config, self._config)
        if chosen.profiler is None:
            raise NoProfiler(
                "No profiler is configured. Create the engine with profiler='torch' and torch_profiler_dir, or hand a "
                "configuration to start_profile: start_profile(config={'torch_profiler_dir': 'profiles'})."
            )
        _make_folder(chosen)
        self.stop()
        name = prefix or chosen.run_id or datetime.now().strftime("%Y%m%d_%H%M%S")
        recording = Recording(config=chosen, name=name)
        if self._executor is not None:
            self._executor.start_profile(recording)
        self._session = ProfileSession(recording, "engine")
        self._clock.watch = TraceRanges(torch.device("cpu"))
        self._recording, self._before = recording, self._steps.added

    def stop(self) -> tuple[Path, ...]:
        """See `Diffulex.stop_profile`."""
        self._end()
        written, self._written = self._written, ()
        return written

    def on_request_added(self, request_id: int) -> None:
        """Requests leave no mark in a recording."""

    def on_step(self, plan: StepPlan, output: StepOutput, seconds: float) -> None:
        if self._session is not None and not self._session.step():
            self._end()

    def on_request_finished(self, request_id: int, reason: CompletionReason) -> None:
        """Requests leave no mark in a recording."""

    def close(self) -> None:
        try:
            self.stop()
        except WorkerError as error:
            _log.warning("What the workers recorded is lost: %s", error)

    def _end(self) -> None:
        """End the recording that runs, if one does; its files wait for whoever asks for them."""
        recording, session = self._recording, self._session
        self._recording, self._session = None, None
        if recording is None or session is None:
            return
        self._clock.watch = None
        self._written = session.stop()
        seen = self._steps.last(self._steps.added - self._before)
        if seen and "stages" in recording.config.formats:
            self._written += (write_steps(seen, recording.path("engine", "stages.csv")),)
        if self._executor is not None:
            self._written += self._executor.stop_profile()


def read_config(given: ProfilerConfig | Mapping[str, Any], base: ProfilerConfig) -> ProfilerConfig:
    """What a profile is to be like: `base` with the keys of `given` in their place.

    A directory without a word about `profiler` means the torch profiler.

    Raises:
        ConfigError: a key is unknown or its value cannot be used; all problems are listed.
    """
    schema, report = build_schema(core_sections()), Report()
    leaves = schema.groups[_GROUP]
    values = dict(as_mapping(given) or {})
    if values.get("torch_profiler_dir"):
        values.setdefault("profiler", "torch")
    layers = [
        list(expand_group(Given(name=_GROUP, value=layer, origin=origin), leaves) or ())
        for layer, origin in ((attrs.asdict(base), Origin()), (values, Origin(source="user", detail="start_profile")))
    ]
    own = [name.removeprefix(f"{_GROUP}.") for name in schema.by_name if name.startswith(f"{_GROUP}.")]
    asked = [each.name.removeprefix(f"{_GROUP}.") for each in layers[-1]]
    report.problems += [f"{_GROUP} has no key {name!r}. It has {', '.join(own)}." for name in asked if name not in own]
    settings = settle(layers, schema, None, report)
    check_values(settings, report)
    report.problems += profiler_has_a_place(settings)
    if report.problems:
        raise ConfigError(report.problems)
    return ProfilerConfig(**{name: settings[spec.name].value for name, spec in leaves.items()})


def _make_folder(config: ProfilerConfig) -> None:
    try:
        Path(config.torch_profiler_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"torch_profiler_dir is {config.torch_profiler_dir!r}: {error.strerror}"
        raise ConfigError([f"{what}. Name a directory that can be written."]) from error
