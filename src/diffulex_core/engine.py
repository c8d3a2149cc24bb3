"""The engine: prompts in, answers out."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import attrs

from diffulex_core.admission import Prompt, as_list, check_logprobs, check_params, check_prompt, check_token_ids
from diffulex_core.assembly import Parts, assemble
from diffulex_core.canvas.options import check_applies
from diffulex_core.config import ConfigFile, EngineConfig, ProfilerConfig
from diffulex_core.config.load import load_config
from diffulex_core.errors import EngineClosed, NonFiniteLogits
from diffulex_core.evaluation.likelihood import Estimate, log_likelihoods
from diffulex_core.generation import Generation, StepResult
from diffulex_core.host import Host
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.notes import StepNotes
from diffulex_core.outputs import GenerationOutputs, ReqTrajectory
from diffulex_core.pattern import IntArray
from diffulex_core.presets import preset_arguments
from diffulex_core.profiling.ring import StepTimes
from diffulex_core.progress import Progress
from diffulex_core.protocols import LeisurelyRunner, Req
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.stop_strings import StopSearch, first_stop, readable, settled, tokens_of
from diffulex_core.tokenizer import decode
from diffulex_core.tracking import Ticket
from diffulex_core.types import Canvas, CompletionReason, StepPlan, Windows

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Req)


class Diffulex:
    """A diffusion language model ready to answer, with continuous batching over a paged KV cache.

    Use it as a context manager, or call `close()`; both free the device memory. One engine is driven from one thread.

    Args:
        model: a checkpoint directory, or a name that a model source resolves (`tiny/llada`, a hub id); None = as
            `config_file` or `environ` say.
        plugins: names of the plugins to use; None = all that are installed.
        host: discovered plugins to use instead of discovering anew.
        config_file: YAML or TOML file with further keys, or what was read from one; keywords given here win.
        environ: variables that may set keys as `DIFFULEX_<SECTION>__<KEY>`; None = none. The command line passes its
            own.
        strict: refuse keywords that no section owns instead of warning.
        given_by: who gave the options, for messages and `config explain`.
        **options: configuration keys (docs/configuration.md).
    Raises:
        ConfigError: the configuration does not hold together; all problems are listed.
        CheckpointError: the checkpoint is missing or damaged; all problems are listed.
        UnknownNameError: no plugin provides a name.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        plugins: Sequence[str] | None = None,
        host: Host | None = None,
        config_file: str | Path | ConfigFile | None = None,
        environ: Mapping[str, str] | None = None,
        strict: bool = False,
        given_by: str = "the caller",
        **options: Any,
    ) -> None:
        host = self._host = host if host is not None else Host.discover(plugins)
        loaded = load_config(
            None if model is None else str(model),
            options,
            host=host,
            config_file=Path(config_file) if isinstance(config_file, str) else config_file,
            environ=environ,
            strict=strict,
            given_by=given_by,
        )
        self._parts: Parts | None = assemble(loaded, host=host)
        self.config: EngineConfig = self._parts.config
        for warning in self.config.warnings:
            logger.warning(warning)
        self._tickets: dict[int, Ticket] = {}
        self._ended: dict[int, Ticket] = {}
        self._finished_now: list[ReqTrajectory] = []
        self._notes: StepNotes | None = None
        """Of the latest step."""
        self._next_id = 0
        self._epoch = time.perf_counter()
        if isinstance(self._parts.runner, LeisurelyRunner):
            self._parts.runner.at_leisure(self._meanwhile)

    def __enter__(self) -> Diffulex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def now(self) -> float:
        """Seconds since this engine was created; the clock of all records."""
        return time.perf_counter() - self._epoch

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer (a transformers tokenizer)."""
        return self._open.tokenizer

    @property
    def vocab_size(self) -> int:
        """Tokens that the network knows; ids are below it."""
        return self._open.vocab_size

    def preset(self, name: str, **settings: Any) -> SamplingParams:
        """The sampling parameters that the strategy calls `name`, as `engine.preset("factual", max_tokens=32)`.

        Args:
            name: one of `config.strategy.presets`.
            settings: fields of `SamplingParams`, in place of the preset's.
        Raises:
            UnknownNameError: the strategy has no such preset.
            InvalidSamplingParams: a setting cannot be used.
        """
        chosen = preset_arguments(self.config.strategy, name, settings, strategies=self._host.strategies)
        return SamplingParams(**{**self.config.sampling_defaults, **chosen})

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        progress_log_interval: float = 5.0,
    ) -> GenerationOutputs:
        """Answer prompts, batched, and wait for all of them.

        Args:
            prompts: a text, token ids, or a list of either.
            sampling_params: one for all, or one for each prompt; None = the checkpoint's recommendation.
            use_tqdm: show a progress bar.
            progress_log_interval: seconds between progress lines in the log; 0 = none.
        Returns:
            One trajectory for each prompt, in order. In a list, a prompt that cannot be served ends with reason `error`
            and its message, and the others are answered.
        Raises:
            InvalidSamplingParams: the two lists differ in length.
            RequestError: a single prompt (not a list) cannot be served.
        """
        with self.stream(prompts, sampling_params) as generation:
            many = generation.count
            with Progress(total=many, shown=use_tqdm, log_interval=progress_log_interval) as progress:
                while not generation.done:
                    generation.advance()
                    progress.update(done=generation.num_done, tokens=generation.visible_tokens)
            return generation.outputs

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Generation:
        """Answer prompts and watch: iterate the result for the canvas of each prompt after every step.

        Arguments and errors are those of `generate`; leaving the result as a context manager aborts what is not done.
        """
        many = as_list(prompts)
        return Generation(self, many, self._params_for(sampling_params, len(many)), refuse_alone=many is prompts)

    def add_request(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        deliver: Callable[[ReqTrajectory], None] | None = None,
    ) -> int:
        """Queue a request and return its id.

        Args:
            deliver: called with the record as soon as the request ended; None = it is part of the next step's
                `finished`.
        Raises:
            EmptyPrompt, PromptTooLong, InvalidPrompt, InvalidSamplingParams: it cannot be served; nothing changed.
        """
        parts = self._open
        [params] = self._params_for(sampling_params, 1)
        check_token_ids(params, parts.vocab_size)
        check_logprobs(params, self.config.strategy)
        check_applies(params, parts.req_context.options)
        if params.seed is None:
            params = attrs.evolve(params, seed=random.getrandbits(63))
        tokens = check_prompt(prompt, tokenizer=parts.tokenizer, vocab_size=parts.vocab_size, context=parts.req_context)
        request = self.submit(
            lambda request_id: parts.req(
                request_id=request_id, prompt=tokens, params=params, context=parts.req_context
            ),
            deliver=deliver or self._finished_now.append,
        )
        return request.request_id

    def submit(self, make: Callable[[int], R], *, deliver: Callable[[ReqTrajectory], None]) -> R:
        """Queue a request of one's own making, which takes its turns with all others.

        Args:
            make: called with the request's id.
            deliver: as for `add_request`.
        Raises:
            RequestError: it cannot be served; nothing changed.
        """
        parts = self._open
        request = make(self._next_id)
        parts.scheduler.add(request)
        stop, text_of = request.params.stop, partial(self._text, params=request.params)
        self._tickets[request.request_id] = Ticket(
            request=request,
            arrival=self.now(),
            deliver=deliver,
            stops=StopSearch(stop, text_of) if stop else None,
        )
        self._next_id += 1
        parts.observer.on_request_added(request.request_id)
        return request

    def log_likelihood(
        self,
        pairs: Sequence[tuple[Prompt, Prompt]],
        *,
        mc_num: int = 128,
        batch_size: int = 16,
        cfg_scale: float = 0.0,
        seed: int = 0,
        use_tqdm: bool = False,
        progress_log_interval: float = 5.0,
    ) -> list[float]:
        """Estimate how probable the model finds continuations: ln P(continuation | context) of each pair.

        The estimate of masked diffusion models: in each draw a uniform number k of the continuation's n tokens is
        masked, and n / k times the sum of their log probabilities is taken; the mean over the draws is a lower bound of
        the log-likelihood in expectation. Equal draws are computed once. For the details see docs/evaluation.md.

        Args:
            pairs: context and continuation, each a text or token ids; the context may be empty.
            mc_num: draws of each pair. A continuation of one token has a single masking, and its value is exact.
            batch_size: so many draws share an even spread of masked numbers. It decides no batch of the engine's.
            cfg_scale: weight of classifier-free guidance; 0 = none, above 0 every forward costs twice the rows.
            seed: of the draws. They depend on the context too, so that continuations of one context share them.
            use_tqdm: show a progress bar.
            progress_log_interval: seconds between progress lines in the log; 0 = none.
        Returns:
            A value for each pair, in order. It does not depend on the other pairs.
        Raises:
            IncompatibleError: the strategy does not run the network under full attention.
            RequestError: a pair cannot be served; nothing was computed. Or somebody aborted a forward of one.
            NonFiniteLogits: the network gave NaN.
        """
        parts = self._open
        return log_likelihoods(
            self,
            pairs,
            Estimate(mc_num=mc_num, batch_size=batch_size, cfg_scale=cfg_scale, seed=seed),
            strategies=self._host.strategies,
            vocab_size=parts.vocab_size,
            context=parts.req_context,
            shown=use_tqdm,
            log_interval=progress_log_interval,
        )

    def step(self, *, collect: bool = True) -> StepResult:
        """Run one forward over everything that is ready.

        Args:
            collect: hand out the records of ended requests; False leaves them for a later step.
        """
        parts = self._open
        began = self.now()
        self._ended.clear()
        parts.clock.reset()
        parts.clock.begin("schedule")
        plan = parts.scheduler.schedule()
        if plan is None:
            parts.clock.reset()
            return StepResult(plan=None, output=None, seconds=0.0, finished=self._take_finished() if collect else ())
        canvases = self._trace(plan)
        parts.clock.begin("execute")
        output = parts.runner.execute(plan)
        self._meanwhile()  # where the runner had no leisure for it
        parts.clock.begin("update")
        done = parts.scheduler.update(plan, output)
        schedule, execute, update = parts.clock.finish()
        parts.times.add(plan, output, schedule=schedule, execute=execute, update=update)
        ended = self.now()
        self._notes = StepNotes(plan, output, tickets=self._tickets, canvases=canvases, began=began, ended=ended)
        gone = [*(request.request_id for request in done), *self._stop_on_strings(plan)]
        reasons = {request_id: self._finish(request_id, ended) for request_id in gone}
        # Observers come last: one that raises must not cost anybody a record.
        parts.observer.on_step(plan, output, ended - began)
        for request_id, reason in reasons.items():
            parts.observer.on_request_finished(request_id, reason)
        return StepResult(
            plan=plan, output=output, seconds=ended - began, finished=self._take_finished() if collect else ()
        )

    def abort_request(self, request_id: int) -> bool:
        """End a request now; its pages are free at once. False when it is not here (any more).

        Its record, with the longest decided prefix as answer, is delivered as `add_request` says.
        """
        parts = self._open
        if not parts.scheduler.abort(request_id):
            return False
        parts.observer.on_request_finished(request_id, self._finish(request_id, self.now()))
        return True

    def peek(self, request_id: int) -> tuple[Canvas, str]:
        """Canvas and text so far of a request that is waiting, running, or ended in the latest step.

        The text leaves out what may still become a stop string, and half a character at its end.

        Raises:
            KeyError: there is no such request.
        """
        request = self._here(request_id)
        text = readable(request.output_tokens, lambda some: self._text(some, request.params))
        return request.canvas, settled(text, request.params.stop)

    def look(self, request_id: int) -> tuple[Canvas, IntArray]:
        """Canvas and [n] final tokens so far of a request, as `peek` but without spelling them out.

        The tokens are the canvas' first ones. A stop string may still cut some off.

        Raises:
            KeyError: there is no such request.
        """
        request = self._here(request_id)
        return request.canvas, request.output_tokens

    @property
    def cache_pages(self) -> tuple[int, int]:
        """Pages of the KV cache, those of all replicas together: how many there are, and how many are free."""
        caches = self._open.kv_caches
        return sum(cache.num_pages for cache in caches), sum(cache.num_free_pages for cache in caches)

    @property
    def cached_pages(self) -> int:
        """Pages of the core's KV cache that hold the beginnings of prompts for others, in use or free."""
        return sum(cache.num_cached_pages for cache in self._open.kv_caches if isinstance(cache, PagedKVCache))

    def is_finished(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._open.scheduler.has_work()

    def start_profile(
        self, prefix: str | None = None, config: ProfilerConfig | Mapping[str, Any] | None = None
    ) -> None:
        """Begin to record what this process and the workers do, in place of a recording that runs.

        Args:
            prefix: first part of the names of all files; None = the configured `run_id`, or the time.
            config: what to record; None = the engine's `profiler_config`, and a mapping's keys stand in place of
                those. One with a `torch_profiler_dir` is enough.
        Raises:
            NoProfiler: neither the engine nor `config` says where files are written.
            ConfigError: `config` cannot be used, or its directory cannot be made; nothing is recorded.
        """
        self._open.profiler.start(prefix, config)

    def stop_profile(self) -> tuple[Path, ...]:
        """End the recording and return its files, those of the workers too; none when no step was recorded."""
        return self._open.profiler.stop()

    def recent_steps(self, count: int | None = None) -> tuple[StepTimes, ...]:
        """What the latest steps computed and how long their stages took, oldest first.

        Args:
            count: so many at most; None = all that are kept (`profiler_config.keep_steps`).
        """
        return self._open.times.last(count)

    def close(self) -> None:
        """Free the model and the cache. Unfinished requests end as aborted. Calling it again does nothing."""
        if self._parts is None:
            return
        for request_id in list(self._tickets):
            self.abort_request(request_id)
        parts, self._parts = self._parts, None
        try:
            parts.observer.close()
        finally:
            parts.runner.close()

    def exit(self) -> None:
        """The same as `close()`."""
        self.close()

    def _here(self, request_id: int) -> Req:
        return (self._tickets.get(request_id) or self._ended[request_id]).request

    @property
    def _open(self) -> Parts:
        if self._parts is None:
            raise EngineClosed("This engine was closed. Create a new Diffulex to go on.")
        return self._parts

    def _params_for(
        self, given: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> Sequence[SamplingParams]:
        if given is None:
            given = SamplingParams(**self.config.sampling_defaults)
        return check_params(given, count)

    def _trace(self, plan: StepPlan) -> Mapping[int, Canvas]:
        if not self.config.runtime.save_trace:
            return {}
        return {window.request_id: self._tickets[window.request_id].request.canvas for window in plan.windows}

    def _meanwhile(self) -> None:
        """What is left to do of the step before, and needs nothing of the one that runs."""
        if self._notes is not None:
            self._notes.write_rest()
            self._notes = None

    def _stop_on_strings(self, plan: StepPlan) -> list[int]:
        """Take requests whose answer holds a stop string by now from the scheduler; returns their ids."""
        stopped = []
        for request_id in Windows.of(plan.windows).request_ids:
            ticket = self._tickets[request_id]
            if ticket.stops is None or ticket.request.completion is not None:
                continue
            if ticket.stops.finds(ticket.request.output_tokens):
                self._open.scheduler.abort(request_id, CompletionReason.STOP_STRING)
                stopped.append(request_id)
        return stopped

    def _finish(self, request_id: int, now: float) -> CompletionReason:
        """Turn a request that the scheduler let go into its record, and deliver it."""
        if self._notes is not None:
            self._notes.write(request_id)
        ticket = self._ended[request_id] = self._tickets.pop(request_id)
        request = ticket.request
        reason = request.completion
        assert reason is not None, "the scheduler let go of a request that goes on"
        tokens = request.output_tokens
        text = self._text(tokens, request.params)
        cut = first_stop(text, request.params.stop)
        if cut is not None:
            reason = CompletionReason.STOP_STRING
            text = text[:cut]
            tokens = tokens_of(text, tokens, lambda some: self._text(some, request.params))
        error = str(NonFiniteLogits([request_id])) if reason is CompletionReason.ERROR else None
        ticket.deliver(
            ticket.trajectory(
                req_id=request_id, tokens=tuple(tokens.tolist()), text=text, reason=reason, error=error, now=now
            )
        )
        return reason

    def _text(self, tokens: IntArray, params: SamplingParams) -> str:
        return decode(self._open.tokenizer, tokens.tolist(), skip_special_tokens=params.skip_special_tokens)

    def _take_finished(self) -> tuple[ReqTrajectory, ...]:
        finished = tuple(self._finished_now)
        self._finished_now.clear()
        return finished
