"""Builds the requests of dream_canvas."""

from __future__ import annotations

from diffulex_core.canvas.options import resolve
from diffulex_core.canvas.request import CanvasRequest, TokensHook, canvas_length, seed_of, sparse_of
from diffulex_core.canvas.schedule import time_grid
from diffulex_core.plugin import IntArray, InvalidSamplingParams, ReqContext, SamplingParams
from diffulex_dream.canvas.options import ALGORITHMS, DreamCanvasOptions
from diffulex_dream.canvas.rule import DreamRule


def make_request(
    *,
    request_id: int,
    prompt: IntArray,
    params: SamplingParams,
    context: ReqContext,
    tokens_hook: TokensHook | None = None,
) -> CanvasRequest:
    """A canvas that is decided as one of Dream's samplers does; for the hook see `TokensHook`.

    Raises:
        InvalidSamplingParams, PromptTooLong: it cannot be served.
    """
    assert isinstance(context.options, DreamCanvasOptions)
    sparse = sparse_of(params, context)
    if sparse is not None and sparse.force_first:
        raise InvalidSamplingParams(
            "sparse.force_first is a rule for blocks, and this decoding strategy has none. Leave it out, or choose "
            "llada_canvas."
        )
    options = resolve(context.options, params, algorithms=ALGORITHMS)
    length = canvas_length(options, params, len(prompt), context)
    rule = DreamRule(
        alg=options.alg,
        grid=time_grid(options.steps, options.eps),
        prompt_len=len(prompt),
        length=length,
        alg_temp=options.alg_temp or 0.0,
        threshold=params.resolve_thresholds(context.thresholds).accept_threshold,
        deferred=context.eos_token_ids if options.defer_eos else frozenset(),
        skip_empty=options.skip_empty_steps,
        seed=seed_of(params),
    )
    return CanvasRequest(
        request_id=request_id,
        prompt=prompt,
        params=params,
        context=context,
        options=options,
        length=length,
        rule=rule,
        tokens_hook=tokens_hook,
    )
