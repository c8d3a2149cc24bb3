"""How hard the kit tries: tiers, and how many examples each of them draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import attrs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from hypothesis.strategies import SearchStrategy

Tier = Literal["fast", "full", "nightly", "gpu"]
"""fast: always the same few examples, a minute for each plugin. full: ten times as many. nightly: a hundred times as
many, random ones. gpu: as full, on a device."""
TIERS: tuple[Tier, ...] = get_args(Tier)

_EXAMPLES: dict[Tier, int] = {"fast": 20, "full": 200, "nightly": 2000, "gpu": 200}
_INCLUDES: dict[Tier, tuple[Tier, ...]] = {
    "fast": ("fast",),
    "full": ("fast", "full"),
    "nightly": ("fast", "full", "nightly"),
    "gpu": ("fast", "full", "gpu"),
}


@attrs.frozen(kw_only=True)
class Effort:
    """What a check may spend.

    Attributes:
        tier: which checks run, and with how many examples.
        shrinks: whether a failure is made as small as it gets, which takes some time and is for people to read.
    """

    tier: Tier = "fast"
    shrinks: bool = True

    def covers(self, tier: Tier) -> bool:
        """Whether checks of a tier run."""
        return tier in _INCLUDES[self.tier]

    def examples(self, share: float = 1.0) -> int:
        """Number of examples of a property; `share` is for those that are dearer or cheaper than most."""
        return max(1, round(_EXAMPLES[self.tier] * share))

    def settings(self, share: float = 1.0, **more: Any) -> settings:
        """Settings of hypothesis: derandomised except by night, without deadlines, since machines are shared."""
        by_night = self.tier == "nightly"
        chosen: dict[str, Any] = {
            "max_examples": self.examples(share),
            "deadline": None,
            "derandomize": not by_night,
            "print_blob": by_night,
            # One clear failure, not a group of them.
            "report_multiple_bugs": False,
            "suppress_health_check": list(HealthCheck),
            **more,
        }
        if not by_night:
            # A derandomised run has no use for failures of earlier runs, nor for time spent on explaining one.
            chosen.setdefault("database", None)
            shrink = (Phase.shrink,) if self.shrinks else ()
            chosen.setdefault("phases", (Phase.explicit, Phase.generate, *shrink))
        return settings(**chosen)

    def for_all(self, share: float = 1.0, **strategies: SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
        """Run the decorated function at once, on examples of its arguments.

        @effort.for_all(lengths=st.lists(st.integers(1, 9)))
        def holds(lengths): ...
        """

        def run(body: Callable[..., None]) -> None:
            self.settings(share)(given(**strategies)(body))()

        return run

    def run_machine(self, machine: type[RuleBasedStateMachine], *, steps: int = 30, share: float = 1.0) -> None:
        """Drive a state machine of hypothesis through random histories of up to `steps` rules."""
        run_state_machine_as_test(machine, settings=self.settings(share, stateful_step_count=steps))


def register_profiles() -> None:
    """Make the profiles "diffulex-fast", "diffulex-full" and "diffulex-nightly" known to hypothesis."""
    by_name: tuple[Tier, ...] = ("fast", "full", "nightly")
    for tier in by_name:
        settings.register_profile(f"diffulex-{tier}", Effort(tier=tier).settings())
