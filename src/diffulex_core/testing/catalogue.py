"""All checks of the kit, in the order in which they are run."""

from __future__ import annotations

from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import (
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

CHECKS: tuple[AnyCheck, ...] = (
    *plugins.CHECKS,
    *trials.CHECKS,
    *families.CHECKS,
    *weights.CHECKS,
    *writes.CHECKS,
    *models.CHECKS,
    *requests.CHECKS,
    *thresholds.CHECKS,
    *scheduler.CHECKS,
    *kv_cache.CHECKS,
    *sampler.CHECKS,
    *cache_policy.CHECKS,
    *attention.CHECKS,
    *experts.CHECKS,
    *layer_kernels.CHECKS,
    *runners.CHECKS,
    *static_steps.CHECKS,
    *executors.CHECKS,
    *sources.CHECKS,
    *engine.CHECKS,
)
