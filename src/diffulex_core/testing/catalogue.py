"""All checks of the kit, in the order in which they are run."""

from __future__ import annotations

from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import (
    attention,
    cache_policy,
    engine,
    families,
    kv_cache,
    models,
    plugins,
    requests,
    sampler,
    scheduler,
    trials,
    weights,
)

CHECKS: tuple[AnyCheck, ...] = (
    *plugins.CHECKS,
    *trials.CHECKS,
    *families.CHECKS,
    *weights.CHECKS,
    *models.CHECKS,
    *requests.CHECKS,
    *scheduler.CHECKS,
    *kv_cache.CHECKS,
    *sampler.CHECKS,
    *cache_policy.CHECKS,
    *attention.CHECKS,
    *engine.CHECKS,
)
