"""How plans are executed, and where the network is loaded and runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from diffulex_core.types import StepOutput, StepPlan

if TYPE_CHECKING:
    from pathlib import Path

    from diffulex_core.profiling.session import Recording
    from diffulex_core.profiling.stages import StageClock
    from diffulex_core.sizing import Capacity


@runtime_checkable
class ModelRunner(Protocol):
    """Executes plans: packs rows, runs the model, samples.

    For requests whose spans say so it keeps one hidden row each, until a plan names them as ended.
    """

    def execute(self, plan: StepPlan) -> StepOutput:
        """Run one forward over the plan's rows, and sample. One decision comes back for each window."""
        ...

    def close(self) -> None:
        """Free the device memory it holds."""
        ...


@runtime_checkable
class LeisurelyRunner(Protocol):
    """What a runner, or an executor, offers besides `execute` that lets others work while the device does."""

    def at_leisure(self, work: Callable[[], None]) -> None:
        """From now on call `work` once in every step: when the device has all that it is to do for the step, and before
        its results are waited for.

        Args:
            work: what the host has to do that needs none of the step's results; it is called on the thread of
                `execute`.
        """
        ...


@runtime_checkable
class StagedRunner(Protocol):
    """What a runner offers besides `ModelRunner` that times its stages (`StepOutput.stages`)."""

    @property
    def clock(self) -> StageClock:
        """The clock of its stages; a profiler watches it."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Where the network runs: it loads it, says what fits, and then executes plans as a `ModelRunner`.

    The factory of an executor is called with the `worker.Blueprint` and, as keywords, `host`, `devices` (one for each
    rank), `replica` (which copy of the network this is), `sharers` (processes of the engine on one device) and
    `progress`. It may return before everything is loaded.
    """

    @property
    def vocab_size(self) -> int:
        """Ids below this may be fed and decided."""
        ...

    def capacity(self) -> Capacity:
        """What fits once everything is loaded; waits until then and raises what went wrong."""
        ...

    def allocate(self, num_pages: int) -> None:
        """Make the pages and get ready for plans. Called once."""
        ...

    def execute(self, plan: StepPlan) -> StepOutput:
        """As `ModelRunner.execute`, in every process that takes part."""
        ...

    def close(self) -> None:
        """Free the device memory and end what was started. Calling it again does nothing."""
        ...


@runtime_checkable
class ProfiledExecutor(Protocol):
    """What an executor offers besides `Executor` whose processes can be profiled."""

    def start_profile(self, recording: Recording) -> None:
        """Time stages by when the device is done with them, and record the processes other than this one."""
        ...

    def stop_profile(self) -> tuple[Path, ...]:
        """End that, and return the files that were written. Without a recording that runs it does nothing."""
        ...
