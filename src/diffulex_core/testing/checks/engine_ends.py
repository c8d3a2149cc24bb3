"""Checks of how requests leave an engine: with clean answers, with all their pages, and without harm to the others."""

from __future__ import annotations

from collections.abc import Callable

from diffulex_core.errors import EngineClosed
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.engines import POISONED, Asked, Engines, engines, run_out, serve, step, tokens
from diffulex_core.testing.subjects import EngineSubject
from diffulex_core.types import CompletionReason


@check(EngineSubject)
def check_answers_hold_real_tokens(subject: EngineSubject, effort: Effort) -> None:
    """However probable the mask token, an id beyond the tokenizer's, or an end of text is, no answer holds it.

    Why: heads are padded to round sizes and networks were trained with mask tokens, so both come up sooner or later.
    Fix: forbid the mask and ids from `vocab_size` on in the sampler before anything else (a sampler component is given
    both), and end answers at a stop token.
    """
    with engines(subject) as made:
        vocabulary = made.vocabulary
        biased = {token: 12.0 for token in (vocabulary.mask, *vocabulary.eos[:1]) if token is not None}
        asked = [
            Asked(
                prompt=made.prompt(4, salt),
                params=SamplingParams(
                    temperature=temperature, seed=salt, max_tokens=8, logit_bias=biased if salt % 2 else {}
                ),
            )
            for salt, temperature in enumerate((0.0, 0.0, 3.0, 3.0, 9.0, 9.0))
        ]
        records = serve(made.open(), asked)
        for each, record in zip(asked, records, strict=True):
            _check_record(made, each, record)
        if any(record.completion_reason is CompletionReason.ERROR for record in records):
            raise CheckFailed("a request ended with reason 'error', although the network gave numbers throughout")


@check(EngineSubject)
def check_pages_come_back(subject: EngineSubject, effort: Effort) -> None:
    """Where pages suffice for one request at a time, one after the other is served, also after aborts, without end.

    Why: a request that leaves pages behind takes them from all that come later, until nobody is served any more.
    Fix: release every sequence of a request when it ends, however it ends, in the very call of `abort_request`; see
    check_integrity() of the scheduler and the cache.
    """
    with engines(subject) as made:
        asked = Asked(
            prompt=made.prompt(6), params=SamplingParams(temperature=0.0, seed=1, max_tokens=4, ignore_eos=True)
        )
        engine = made.tight([asked], spare=0)
        [wanted] = tokens(serve(engine, [asked]))
        for turn in range(4):
            abandoned = engine.add_request(asked.prompt, asked.params)
            for _ in range(turn):
                if not engine.is_finished():
                    step(engine)
            left = engine.abort_request(abandoned)
            if engine.abort_request(abandoned):
                raise CheckFailed("abort_request is True for a request that is gone; it ends a request once")
            if left and not engine.is_finished():
                raise CheckFailed("after its only request was aborted the engine still has work")
            later = engine.add_request(asked.prompt, asked.params)
            if later not in [window.request_id for window in step(engine).windows]:
                raise CheckFailed(
                    "a request was aborted, and its pages are not there for the next one in the next step"
                )
            run_out(engine)
            if (again := tokens(serve(engine, [asked]))) != [wanted]:
                raise CheckFailed(f"after aborts the same request is answered {list(again[0])}, before {list(wanted)}")


@check(EngineSubject)
def check_aborts_leave_others_alone(subject: EngineSubject, effort: Effort) -> None:
    """When a request is aborted the others get their answers, and its own record is clean and says so.

    Why: users leave all the time. A step that counts on somebody who left crashes for everybody.
    Fix: identify requests by id, not by their place in a batch, and return the longest decided prefix from
    `output_tokens` after `finish()`.
    """
    with engines(subject) as made:
        asked = made.mixed()
        wanted = made.alone(asked)
        for steps in (0, 1, 2):
            engine, records = made.open(), dict[int, ReqTrajectory]()
            ids = [engine.add_request(each.prompt, each.params, deliver=_into(records)) for each in asked]
            for _ in range(steps):
                if not engine.is_finished():
                    step(engine)
            victim = ids[steps % 2]
            aborted = engine.abort_request(victim)
            run_out(engine)
            for number, each, alone in zip(ids, asked, wanted, strict=True):
                if number not in records:
                    raise CheckFailed(
                        f"a request was aborted after {steps} steps, and another one ended without a record"
                    )
                record = records[number]
                _check_record(made, each, record)
                if number != victim and record.token_ids != alone:
                    raise CheckFailed(
                        f"a request is answered {list(record.token_ids)} where another one was aborted after {steps} "
                        f"steps, and {list(alone)} alone"
                    )
            if aborted and records[victim].completion_reason is not CompletionReason.ABORTED:
                raise CheckFailed(f"an aborted request ended with {records[victim].completion_reason}")


@check(EngineSubject)
def check_streams_end_as_answers(subject: EngineSubject, effort: Effort) -> None:
    """What a stream shows grows towards the answer: its text begins as the step before, and ends as the final text.

    Why: a client prints what is new of each event. Text that is taken back stays on the screen.
    Fix: let `output_tokens` end before the first position that may still change.
    """
    with engines(subject) as made:
        asked = made.mixed()
        wanted = made.alone(asked)
        shown, ended = ["" for _ in asked], dict[int, ReqTrajectory]()
        with made.open().stream([each.prompt for each in asked], [each.params for each in asked]) as events:
            for event in events:
                if not event.text.startswith(shown[event.index]):
                    raise CheckFailed(f"a stream showed {shown[event.index]!r} and then {event.text!r}")
                shown[event.index] = event.text
                if event.trajectory is not None:
                    ended[event.index] = event.trajectory
        for index, alone in enumerate(wanted):
            if index not in ended or ended[index].token_ids != alone or ended[index].text != shown[index]:
                got = None if index not in ended else list(ended[index].token_ids)
                raise CheckFailed(
                    f"a stream ended with {got} and the text {shown[index]!r}; the answer is {list(alone)}"
                )


@check(EngineSubject)
def check_nan_fails_one_request(subject: EngineSubject, effort: Effort) -> None:
    """A request for which the network gives NaN ends with an error that names it, and the others are answered.

    Why: one prompt that overflows would otherwise end an engine with all its requests, or be answered with noise.
    Fix: let the sampler say `Decision.finite=False` for a window with a row that is not finite, and let nothing in the
    network mix rows of different sequences.
    """
    with engines(subject) as made:
        healthy = made.mixed()
        wanted = made.alone(healthy)
        sick = Asked(prompt=(made.poison, *made.prompt(2, 4)), params=healthy[1].params)
        engine = made.open(executor=POISONED, enable_prefix_caching=False)
        for turn in ("beside one that fails", "after one that failed"):
            records = serve(engine, [healthy[0], sick, *healthy[1:]])
            failed = records.pop(1)
            if failed.completion_reason is not CompletionReason.ERROR or not failed.error:
                raise CheckFailed(
                    f"a request whose embeddings hold NaN ended with {failed.completion_reason} and the error "
                    f"{failed.error!r}, answering {list(failed.token_ids)}"
                )
            if str(failed.req_id) not in failed.error:
                raise CheckFailed(f"the error of a failed request does not name it ({failed.req_id}): {failed.error}")
            if tokens(records) != wanted:
                raise CheckFailed(
                    f"{turn} healthy requests are answered {[list(each) for each in tokens(records)]}, alone "
                    f"{[list(each) for each in wanted]}"
                )


@check(EngineSubject)
def check_engines_close(subject: EngineSubject, effort: Effort) -> None:
    """Closing an engine ends its requests as aborted, may be repeated, and the next engine answers as the first did.

    Why: programs make and close engines in one process, and do so again in `finally`.
    Fix: free in `close()` of runner and executor what the engine made, and nothing that another engine uses.
    """
    with engines(subject) as made:
        asked = made.mixed()
        first, records = made.open(), dict[int, ReqTrajectory]()
        wanted = tokens(serve(first, asked))
        left = first.add_request(asked[0].prompt, asked[0].params, deliver=_into(records))
        step(first)
        first.close()
        first.close()
        if left not in records:
            raise CheckFailed("closing the engine left a request without a record")
        if records[left].completion_reason not in (CompletionReason.ABORTED, CompletionReason.LENGTH_TOKENS):
            raise CheckFailed(f"closing the engine ended a request with {records[left].completion_reason}")
        try:
            first.step()
        except EngineClosed:
            pass
        else:
            raise CheckFailed("a closed engine takes a step; it should raise EngineClosed")
        again = tokens(serve(made.open(), asked))
        if again != wanted:
            raise CheckFailed(f"a second engine answers {again}, the first one answered {wanted}")


def _into(records: dict[int, ReqTrajectory]) -> Callable[[ReqTrajectory], None]:
    def deliver(record: ReqTrajectory) -> None:
        records[record.req_id] = record

    return deliver


def _check_record(made: Engines, asked: Asked, record: ReqTrajectory) -> None:
    answer, params, vocabulary = record.token_ids, asked.params, made.vocabulary
    where = f"a request with temperature {params.temperature} that ended with {record.completion_reason}"
    if vocabulary.mask in answer:
        raise CheckFailed(f"{where} is answered {list(answer)}, with the mask token {vocabulary.mask}")
    if outside := [token for token in answer if not 0 <= token < vocabulary.size]:
        raise CheckFailed(f"{where} is answered with token {outside[0]}; the tokenizer has {vocabulary.size}")
    if not params.ignore_eos and set(answer) & set(vocabulary.eos):
        raise CheckFailed(f"{where} is answered {list(answer)}, with an end of text in it ({vocabulary.eos})")
    if len(answer) > params.max_tokens:
        raise CheckFailed(f"{where} is answered {len(answer)} tokens")


CHECKS: tuple[AnyCheck, ...] = (
    check_answers_hold_real_tokens,
    check_pages_come_back,
    check_aborts_leave_others_alone,
    check_streams_end_as_answers,
    check_nan_fails_one_request,
    check_engines_close,
)
