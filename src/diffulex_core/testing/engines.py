"""Engines of a family and a strategy over random weights, with networks sure enough of themselves to decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor, nn

from diffulex_core.engine import Diffulex
from diffulex_core.errors import ConfigError, PromptTooLong
from diffulex_core.graphs import Rerun
from diffulex_core.host import Host
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.check import CheckFailed
from diffulex_core.testing.checkpoints import TinyVocabulary, longest, write_checkpoint
from diffulex_core.testing.patience import patience
from diffulex_core.testing.subjects import EngineSubject, FamilySubject, StrategySubject
from diffulex_core.types import StepPlan
from diffulex_core.worker import Blueprint, Worker

T = TypeVar("T")

SHARPNESS = 6.0
"""Factor on the logits of random weights, whose distributions are nearly flat: confidences then lie on both sides of
the usual thresholds."""
MOST_STEPS = 3000
"""More than the kit's requests take together, so that whoever needs more never ends."""

FEW = 4
"""Steps where a strategy's own keys say how many."""

SHARP, POISONED, STATIC = "kit_sharp", "kit_poisoned", "kit_static"
"""Names of the kit's executors."""


@attrs.frozen(kw_only=True)
class Asked:
    """A request.

    Attributes:
        prompt: token ids.
        params: its sampling parameters.
    """

    prompt: tuple[int, ...]
    params: SamplingParams


@attrs.frozen(kw_only=True, eq=False)
class Engines:
    """Makes engines of one subject, all with the same weights; closed together.

    Attributes:
        subject: family and strategy.
        folder: the checkpoint.
        vocabulary: its tokens.
    """

    subject: EngineSubject
    folder: Path
    vocabulary: TinyVocabulary
    _opened: ExitStack = attrs.field(factory=ExitStack, repr=False)

    def open(self, **settings: Any) -> Diffulex:
        """An engine with small blocks and pages; `settings` override that, except what the strategy forces."""
        asked = {
            "executor": SHARP,
            "device": "cpu",
            "dtype": "float32",
            "num_pages": 48,
            "skip_warmup": True,
            **settings,
        }

        def build(options: Mapping[str, Any]) -> Diffulex:
            return Diffulex(self.folder, host=self.subject.host, **options)

        return self._opened.enter_context(configured(self.subject.family, self.subject.strategy, asked, build))

    def prompt(self, length: int, salt: int = 0) -> tuple[int, ...]:
        """Plain tokens that differ by `salt`, all but the last of them, which is `poison`."""
        plain = self.vocabulary.plain[:-1]
        return tuple(plain[(7 * at * at + 13 * at + 31 * salt + 5) % len(plain)] for at in range(length))

    @property
    def poison(self) -> int:
        """The token that the executor `POISONED` makes NaN of where a prompt begins with it."""
        return self.vocabulary.plain[-1]

    def mixed(self) -> list[Asked]:
        """Requests that differ in length and in how they draw."""
        settings: tuple[tuple[int, dict[str, Any]], ...] = (
            (3, {"temperature": 0.0, "seed": 0, "max_tokens": 7}),
            (9, {"temperature": 1.0, "seed": 1, "max_tokens": 5}),
            (8, {"temperature": 0.7, "seed": 2, "top_p": 0.9, "max_tokens": 6}),
        )
        return [
            Asked(prompt=self.prompt(length, salt), params=SamplingParams(ignore_eos=True, **given))
            for salt, (length, given) in enumerate(settings)
        ]

    def alone(self, asked: Iterable[Asked], **settings: Any) -> list[tuple[int, ...]]:
        """The answers that each request gets from an engine that serves nobody beside it and shares no pages."""
        engine = self.open(enable_prefix_caching=False, **settings)
        return [tokens(serve(engine, [each]))[0] for each in asked]

    def tight(self, asked: Sequence[Asked], *, spare: int = 1, **settings: Any) -> Diffulex:
        """An engine with the fewest pages that let each of the requests run alone, and `spare` more."""
        page_size = self.open(**settings).config.cache.page_size
        least = max(len(each.prompt) + each.params.max_tokens for each in asked) // page_size
        for pages in range(max(1, least), 64):
            engine = self.open(num_pages=pages + spare, **settings)
            try:
                for each in asked:
                    engine.abort_request(engine.add_request(each.prompt, each.params))
            except PromptTooLong:
                engine.close()
            else:
                return engine
        raise CheckFailed(f"64 pages of {page_size} slots do not let a request of {len(asked[0].prompt)} tokens run")

    def close(self) -> None:
        """Close the engines."""
        self._opened.close()


@contextmanager
def engines(subject: EngineSubject) -> Iterator[Engines]:
    """Engines of a subject, closed on leaving."""
    with TemporaryDirectory() as folder:
        made = Engines(subject=subject, folder=Path(folder), vocabulary=write_checkpoint(subject.family, Path(folder)))
        try:
            yield made
        finally:
            made.close()


def configured(
    family: FamilySubject, recipe: StrategySubject, settings: Mapping[str, Any], build: Callable[[Mapping[str, Any]], T]
) -> T:
    """What `build` makes of a configuration with small blocks and pages, few steps, and random weights.

    Args:
        settings: keys that matter besides.
        build: called with all keys; once more with fewer, when it refuses those that only make the kit quick.
    Raises:
        ConfigError: it refuses those as well.
    """
    strategy = recipe.strategy
    needed: dict[str, Any] = {
        "model_name": family.family.name,
        "decoding_strategy": strategy.name,
        "sampling_mode": recipe.mode,
        "load_format": "dummy",
        "max_model_len": longest(family, 64),
        **settings,
    }
    quick = {"block_size": 4, "buffer_size": 2, "page_size": 8, **_few_steps(recipe)}
    allowed = {name: value for name, value in {**quick, **needed}.items() if name not in strategy.forces}
    try:
        return build(allowed)
    except ConfigError:
        return build({name: value for name, value in needed.items() if name not in strategy.forces})


def _few_steps(recipe: StrategySubject) -> dict[str, int]:
    """Its own keys that count many steps, set low: dozens of forwards for a block prove no more than a few do."""
    if recipe.strategy.config_cls is None:
        return {}
    fields = attrs.fields(recipe.load(recipe.strategy.config_cls))
    unread = recipe.entry.descriptor.unread_in(recipe.mode)
    return {
        field.name: FEW
        for field in fields
        if "steps" in field.name and type(field.default) is int and field.default > 2 * FEW and field.name not in unread
    }


def serve(engine: Diffulex, asked: Sequence[Asked]) -> list[ReqTrajectory]:
    """The records of requests that come together.

    Raises:
        CheckFailed: they do not end.
    """
    records = dict[int, ReqTrajectory]()
    ids = [engine.add_request(each.prompt, each.params, deliver=lambda record: _put(records, record)) for each in asked]
    run_out(engine)
    if missing := [request_id for request_id in ids if request_id not in records]:
        raise CheckFailed(f"requests {missing} ended without a record")
    return [records[request_id] for request_id in ids]


def run_out(engine: Diffulex) -> None:
    """Step until nothing is left to do.

    Raises:
        CheckFailed: that never happens.
    """
    for _ in range(MOST_STEPS):
        if engine.is_finished():
            return
        step(engine)
    raise CheckFailed(f"requests have not ended after {MOST_STEPS} steps; each should end within a few dozen")


def step(engine: Diffulex) -> StepPlan:
    """One step of an engine that has work.

    Raises:
        CheckFailed: it does nothing.
    """
    with patience("a step of the engine"):
        plan = engine.step().plan
    if plan is None or not plan.windows:
        raise CheckFailed("requests wait or run, but the scheduler plans nothing for any of them")
    return plan


def tokens(records: Iterable[ReqTrajectory]) -> list[tuple[int, ...]]:
    """The answers."""
    return [record.token_ids for record in records]


def sharp(blueprint: Blueprint, *, host: Host, devices: Sequence[torch.device], **arguments: Any) -> Worker:
    """An executor in the engine's process whose network is surer of its tokens than random weights are."""
    return _sharpened(Worker(blueprint, host=host, device=devices[0], sharers=arguments["sharers"]))


def static(blueprint: Blueprint, *, host: Host, devices: Sequence[torch.device], **arguments: Any) -> Worker:
    """As `sharp`, and steps that fit a static shape are filled into buffers and run over these again and again."""
    sharers = arguments["sharers"]
    return _sharpened(Worker(blueprint, host=host, device=devices[0], sharers=sharers, graphs=Rerun()))


def poisoned(blueprint: Blueprint, *, host: Host, devices: Sequence[torch.device], **arguments: Any) -> Worker:
    """As `sharp`, and a prompt that begins with the vocabulary's last plain token has an embedding of NaN."""
    worker = sharp(blueprint, host=host, devices=devices, **arguments)
    model, network = blueprint.config.model, as_module(worker)
    special = {model.mask_token_id, *model.eos_token_ids}
    poison = max(token for token in range(blueprint.num_tokens) if token not in special)
    spoiled: list[Tensor] = []
    """Of the forward at hand, which rows begin such a prompt, until somebody made NaN of them."""

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        ids, positions, _ = inputs
        spoiled[:] = [(ids == poison) & (positions == 0)]

    def spoil(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        # Whatever turns ids into rows is an embedding; networks call theirs what they like.
        ids = inputs[0] if inputs else None
        if not spoiled or not isinstance(ids, Tensor) or ids.dtype != torch.int64 or not isinstance(output, Tensor):
            return output
        if output.ndim != 2 or not len(spoiled[0]) == len(ids) == len(output):
            return output
        rows = spoiled.pop()
        if module is network:
            # It has no module for them, so its output is spoiled instead, for all rows of the sequence.
            sequence = inputs[2].batches[0].row_sequence
            rows = torch.isin(sequence, sequence[rows]) if rows.any() else rows
        return output.masked_fill(rows[:, None], torch.nan)

    network.register_forward_pre_hook(look)
    for module in network.modules():
        module.register_forward_hook(spoil)
    return worker


def _sharpened(worker: Worker) -> Worker:
    as_module(worker).register_forward_hook(lambda module, inputs, hidden: hidden * SHARPNESS)
    return worker


def as_module(worker: Worker) -> nn.Module:
    """The worker's network."""
    network = worker.network
    assert isinstance(network, nn.Module), "a network is a torch.nn.Module"
    return network


def _put(records: dict[int, ReqTrajectory], record: ReqTrajectory) -> None:
    records[record.req_id] = record
