"""Builds the requests of llada_canvas."""

from __future__ import annotations

from diffulex_core.canvas.options import resolve
from diffulex_core.canvas.request import CanvasRequest, TokensHook, canvas_length, seed_of, sparse_of
from diffulex_core.plugin import IntArray, InvalidSamplingParams, ReqContext, SamplingParams
from diffulex_llada.canvas.options import ALGORITHMS, LLaDACanvasOptions
from diffulex_llada.canvas.rule import llada_rule


def make_request(
    *,
    request_id: int,
    prompt: IntArray,
    params: SamplingParams,
    context: ReqContext,
    tokens_hook: TokensHook | None = None,
) -> CanvasRequest:
    """A canvas that is decided as LLaDA's own sampler does; for the hook see `TokensHook`.

    Raises:
        InvalidSamplingParams, PromptTooLong: it cannot be served.
    """
    assert isinstance(context.options, LLaDACanvasOptions)
    options = resolve(context.options, params, algorithms=ALGORITHMS)
    by_threshold, random = options.alg == "confidence_threshold", options.remasking == "random"
    if by_threshold and random:
        raise InvalidSamplingParams(
            "alg is 'confidence_threshold' and remasking is 'random', but a random order has no confidence. Use "
            "remasking='low_confidence', or alg='quota'."
        )
    length = canvas_length(options, params, len(prompt), context)
    sparse = sparse_of(params, context)
    rule = llada_rule(
        length=length,
        block_length=options.block_length or (None if sparse is None else sparse.default_block_len),
        steps=options.steps,
        random=random,
        threshold=params.resolve_thresholds(context.thresholds).accept_threshold if by_threshold else None,
        deferred=context.eos_token_ids if options.defer_eos else frozenset(),
        seed=seed_of(params),
        force_first=sparse is not None and sparse.force_first,
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
