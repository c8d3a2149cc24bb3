"""Requests that do not heed what decoding thresholds say."""

from __future__ import annotations

from typing import Any

import attrs

from diffulex_core.blocks import BlockRequest
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import SamplingParams


class AcceptsAtItsOwn(BlockRequest):
    """Tokens are accepted at a number that nobody can change."""

    def __init__(self, *, params: SamplingParams, **given: Any) -> None:
        thresholds = {**params.thresholds, "accept_threshold": 0.5}
        super().__init__(params=attrs.evolve(params, thresholds=thresholds), **given)


class IgnoresItsThresholds(BlockRequest):
    """The engine's thresholds go before the request's."""

    def __init__(self, *, params: SamplingParams, context: ReqContext, **given: Any) -> None:
        super().__init__(params=attrs.evolve(params, thresholds={}), context=context, **given)
