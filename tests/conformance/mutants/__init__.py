"""Broken implementations, a file for each file of checks; each lists its own in `MUTANTS`."""

from __future__ import annotations

from tests.conformance.mutant import Mutant
from tests.conformance.mutants import (
    attention,
    cache_policy,
    engine,
    executors,
    experts,
    families,
    kv_cache,
    layer_kernels,
    models,
    plugins,
    requests,
    runners,
    sampler,
    scheduler,
    sources,
    static_steps,
    thresholds,
    trials,
    weights,
    writes,
)

MUTANTS: tuple[Mutant, ...] = (
    *plugins.MUTANTS,
    *trials.MUTANTS,
    *families.MUTANTS,
    *weights.MUTANTS,
    *writes.MUTANTS,
    *models.MUTANTS,
    *requests.MUTANTS,
    *thresholds.MUTANTS,
    *scheduler.MUTANTS,
    *kv_cache.MUTANTS,
    *sampler.MUTANTS,
    *cache_policy.MUTANTS,
    *attention.MUTANTS,
    *experts.MUTANTS,
    *layer_kernels.MUTANTS,
    *runners.MUTANTS,
    *static_steps.MUTANTS,
    *executors.MUTANTS,
    *sources.MUTANTS,
    *engine.MUTANTS,
)
