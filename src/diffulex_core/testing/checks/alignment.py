"""The check that answers are read from the rows that predict them."""

from __future__ import annotations

from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.copying import COPYING, token_at
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.engines import Asked, engines, serve, tokens
from diffulex_core.testing.subjects import EngineSubject


@check(EngineSubject)
def check_answers_are_read_from_the_predicting_rows(subject: EngineSubject, effort: Effort) -> None:
    """An engine whose network is sure of the token at each position answers with those tokens, in their places.

    The network is replaced by one that was, so to speak, trained as the family's `logits` say: row i predicts position
    i when they are aligned, and position i + 1 when they are shifted.

    Why: with the neighbour's row every token stands one place off, and nothing but the text shows it.
    Fix: heed `ReqContext.shifted` in the request's groups, keep the row before a span that the logits of its first
    position come from (`Span.keep`), or let the strategy require `Capability.ALIGNED_LOGITS`.
    """
    with engines(subject) as made:
        engine = made.open(executor=COPYING)
        lengths = ((3, 7), (8, 9), (9, 4))
        params = [SamplingParams(temperature=0.0, seed=0, max_tokens=count, ignore_eos=True) for _, count in lengths]
        asked = [
            Asked(prompt=made.prompt(length, salt), params=each)
            for salt, ((length, _), each) in enumerate(zip(lengths, params, strict=True))
        ]
        for (length, count), answer in zip(lengths, tokens(serve(engine, asked)), strict=True):
            wanted = tuple(token_at(length + place, made.vocabulary.plain) for place in range(count))
            if answer != wanted:
                ahead = tuple(token_at(length + place + 1, made.vocabulary.plain) for place in range(count))
                behind = tuple(token_at(length + place - 1, made.vocabulary.plain) for place in range(count))
                shift = {ahead: ", each from the position behind it", behind: ", each from the position before it"}
                raise CheckFailed(
                    f"a prompt of {length} tokens: the network is sure of {wanted}, and the answer is"
                    f" {answer}{shift.get(answer, '')}."
                )


CHECKS: tuple[AnyCheck, ...] = (check_answers_are_read_from_the_predicting_rows,)
