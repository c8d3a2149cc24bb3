"""The conformance kit: checks that tell a plugin's author whether it is right. Installed by `diffulex-core[testing]`.

`diffulex plugins check NAME` runs them without any file, `parametrize_with_checks` makes pytest tests of them, and the
classes `...Conformance` test one component each. `strategies`, `machines`, `fakes` and `oracles` are what tests of
one's own are made of.
"""

from __future__ import annotations

from diffulex_core.testing.bases import (
    AttentionConformance,
    CachePolicyConformance,
    ExecutorConformance,
    ExpertsConformance,
    KVCacheConformance,
    LayerKernelsConformance,
    ModelSourceConformance,
    RunnerConformance,
    SamplerConformance,
    SchedulerConformance,
)
from diffulex_core.testing.check import Check, CheckFailed, check
from diffulex_core.testing.collect import ConformanceWarning
from diffulex_core.testing.described import (
    EngineConformance,
    FamilyConformance,
    PluginConformance,
    RequestConformance,
)
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.generate import checks_for
from diffulex_core.testing.outcome import BoundCheck, Outcome, run_checks
from diffulex_core.testing.parametrize import parametrize_with_checks

__all__ = [
    "AttentionConformance",
    "BoundCheck",
    "CachePolicyConformance",
    "Check",
    "CheckFailed",
    "ConformanceWarning",
    "Effort",
    "EngineConformance",
    "ExecutorConformance",
    "ExpertsConformance",
    "FamilyConformance",
    "KVCacheConformance",
    "LayerKernelsConformance",
    "ModelSourceConformance",
    "Outcome",
    "PluginConformance",
    "RequestConformance",
    "RunnerConformance",
    "SamplerConformance",
    "SchedulerConformance",
    "check",
    "checks_for",
    "parametrize_with_checks",
    "run_checks",
]
