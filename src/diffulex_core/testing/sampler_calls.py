"""Calls of a sampler as the runner makes them, spelled out row by row, and hypothesis strategies of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from diffulex_core.distributed import ALONE, Communicator, Seat
from diffulex_core.errors import ConfigError
from diffulex_core.pattern import IntArray, Phase
from diffulex_core.protocols import Sampler
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.check import CheckFailed
from diffulex_core.testing.oracles.sampler import difference
from diffulex_core.testing.subjects import SamplerSubject
from diffulex_core.types import Decision, FloatArray, Questions, SampleGroup, SamplingBatch, Span, Window

TRAP = 30.0
"""Logit of what may never be chosen, so that a sampler that forgets to exclude it chooses it."""

THRESHOLDS = st.sampled_from([0.0, 0.1234, 0.4321, 0.8765])

any_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0.5, 1.0, 1.5]),
    seed=st.one_of(st.integers(0, 2**40), st.sampled_from([-1, 2**63, 2**70])),
    top_k=st.sampled_from([None, None, 1, 3]),
)
limited = st.one_of(
    *(
        st.builds(SamplingParams, temperature=st.sampled_from([0, 1.0]), seed=st.integers(0, 99), **limit)
        for limit in (
            {"top_k": st.integers(1, 6)},
            {"top_p": st.sampled_from([0.11, 0.43, 0.77, 0.96])},
            {"min_p": st.sampled_from([0.03, 0.21, 0.83])},
        )
    )
)


@attrs.frozen(kw_only=True, eq=False)
class Group:
    """The rows of one block: `logits` [rows, columns] float64, and what `SampleGroup` says of them."""

    logits: FloatArray = attrs.field(repr=False)
    threshold: float = 0.9
    force_one: bool = False
    greedy: bool = False
    clean_confidence: bool = False
    measure: str | None = None
    alternatives: int = 0
    discouraged: IntArray | None = None
    penalty: float = 0.0
    watched: IntArray | None = None
    watched_raw: bool = False

    def part(self, rows: slice) -> Group:
        """Some of its rows."""
        return attrs.evolve(
            self,
            logits=self.logits[rows],
            discouraged=None if self.discouraged is None else self.discouraged[rows],
            watched=None if self.watched is None else self.watched[rows],
        )


@attrs.frozen(kw_only=True, eq=False)
class Asked:
    """One request's part of a call; its rows decide consecutive positions from `start` on."""

    groups: tuple[Group, ...]
    params: SamplingParams = SamplingParams(temperature=0)
    draw: int = 0
    start: int = 0
    request_id: int = 0

    @property
    def rows(self) -> int:
        return sum(len(group.logits) for group in self.groups)

    @property
    def owners(self) -> list[Group]:
        """The group of each row."""
        return [group for group in self.groups for _ in group.logits]

    def with_groups(self, change: Callable[[Group], Group]) -> Asked:
        """The same request with other groups."""
        return attrs.evolve(self, groups=tuple(map(change, self.groups)))

    def window(self) -> Window:
        """The window that the runner would hand over."""
        empty, first, groups = np.empty(0, dtype=np.int64), 0, []
        for index, group in enumerate(self.groups):
            rows = np.arange(first, first + len(group.logits))
            first += len(rows)
            groups.append(
                SampleGroup(
                    block=index,
                    positions=rows + self.start,
                    rows=rows,
                    accept_threshold=group.threshold,
                    force_one=group.force_one,
                    greedy=group.greedy,
                    clean_confidence=group.clean_confidence,
                    measure=group.measure,
                    alternatives=group.alternatives,
                    discouraged=group.discouraged,
                    penalty=group.penalty,
                    watched=group.watched,
                    watched_raw=group.watched_raw,
                )
            )
        span = Span(
            start=self.start,
            tokens=np.zeros(max(first, 1), dtype=np.int64),
            catch_up=0,
            store_until=self.start,
            phase=Phase.DECODE,
            groups=tuple(groups),
            advances=True,
        )
        return Window(
            request_id=self.request_id,
            span=span,
            prompt_len=self.start,
            page_table=empty,
            params=self.params,
            draw=self.draw,
        )


@attrs.frozen(kw_only=True, eq=False)
class Call:
    """A sampler and what it is called with.

    Attributes:
        asked: the requests, in the order of their windows.
        vocab_size: ids at or above it are padding.
        forbidden: ids that are never chosen.
        columns: of the logits, padding included.
        dtype: of the logits.
    """

    asked: tuple[Asked, ...]
    vocab_size: int
    forbidden: frozenset[int] = frozenset()
    columns: int
    dtype: torch.dtype = torch.float32

    @property
    def logits(self) -> Tensor:
        """[rows, columns], a new tensor."""
        rows = [group.logits for each in self.asked for group in each.groups]
        return torch.from_numpy(np.concatenate([np.empty((0, self.columns)), *rows])).to(self.dtype)

    @property
    def batch(self) -> SamplingBatch:
        """Whose rows they are, with arrays of its own."""
        owners = [(index, group) for index, each in enumerate(self.asked) for group in each.groups]
        sizes = [len(group.logits) for _, group in owners]
        positions = [np.arange(each.start, each.start + each.rows) for each in self.asked]
        groups = [group for _, group in owners]
        return SamplingBatch(
            positions=np.concatenate([np.empty(0, dtype=np.int64), *positions]),
            window_of_row=np.repeat(np.array([index for index, _ in owners], dtype=np.int64), sizes),
            group_of_row=np.repeat(np.arange(len(owners)), sizes),
            accept_threshold=np.array([group.threshold for group in groups], dtype=np.float64),
            force_one=np.array([group.force_one for group in groups], dtype=np.bool_),
            greedy=np.array([group.greedy for group in groups], dtype=np.bool_),
            windows=tuple(each.window() for each in self.asked),
            clean_confidence=np.array([group.clean_confidence for group in groups], dtype=np.bool_),
            measure=tuple(group.measure for group in groups),
            questions=_questions(groups, sizes),
        )

    def exact(self, index: int) -> FloatArray:
        """[rows, vocab_size] float64: the logits of one window as the sampler reads them, without padding."""
        begin = sum(each.rows for each in self.asked[:index])
        rows: FloatArray = self.logits[begin : begin + self.asked[index].rows, : self.vocab_size].double().numpy()
        return rows

    def make(self, subject: SamplerSubject, tp: Communicator = ALONE) -> Sampler:
        """The sampler."""
        return subject.factory(vocab_size=self.vocab_size, forbidden=self.forbidden, tp=tp)

    def decide(self, subject: SamplerSubject) -> list[Decision]:
        """What a new sampler decides, one decision for each window."""
        return self.ask(self.make(subject))

    def ask(self, sampler: Sampler) -> list[Decision]:
        """What a sampler decides."""
        with torch.inference_mode():
            decisions = list(sampler.sample(self.logits, self.batch))
        return self.checked(decisions)

    def checked(self, decisions: Sequence[Decision]) -> list[Decision]:
        """The decisions, once it is clear that every window has one and every row its entry."""
        decisions = list(decisions)
        if len(decisions) != len(self.asked):
            raise CheckFailed(f"{len(decisions)} decisions for {len(self.asked)} windows; every window gets one.")
        for index, (decision, each) in enumerate(zip(decisions, self.asked, strict=True)):
            lengths = [
                len(part) for part in (decision.positions, decision.tokens, decision.confidence, decision.accepted)
            ]
            if lengths != [each.rows] * 4:
                raise CheckFailed(
                    f"window {index} has {each.rows} rows, but its decision holds {lengths[0]} positions, {lengths[1]} "
                    f"tokens, {lengths[2]} confidences and {lengths[3]} accepted flags."
                )
        return decisions


def told(params: SamplingParams) -> str:
    """What a request's parameters say besides the defaults."""
    default = attrs.asdict(SamplingParams())
    changed = {name: value for name, value in attrs.asdict(params).items() if value != default[name]}
    return f"SamplingParams({', '.join(f'{name}={value!r}' for name, value in changed.items())})"


def refuses_forbidden(subject: SamplerSubject) -> str | None:
    """Why a sampler cannot be made with forbidden ids; None where it can."""
    try:
        subject.factory(vocab_size=5, forbidden=frozenset({1}), tp=ALONE)
    except Exception as error:  # noqa: BLE001 - code under test may raise anything; one that refuses cannot do wrong
        return f"it cannot be made with forbidden ids, so families with a mask token cannot use it ({error!s:.80})"
    return None


def refuses_company(subject: SamplerSubject) -> str | None:
    """Why a sampler cannot be made for several processes; None where it can."""
    try:
        subject.factory(vocab_size=5, forbidden=frozenset(), tp=Seat(0, 2))
    except ConfigError as error:
        return f"it is not made for several processes: {' '.join(error.problems)}"
    except Exception:  # noqa: BLE001 - code under test may raise anything; the check itself will show it
        return None
    return None


def refuse_differences(here: Sequence[Decision], there: Sequence[Decision], how: str) -> None:
    """Raise CheckFailed where two calls decided otherwise; `how` says what was different there."""
    for index, (one, other) in enumerate(zip(here, there, strict=True)):
        found = difference(one, other)
        if found is not None:
            raise CheckFailed(f"window {index} is decided otherwise {how}: {found}.")


def _questions(groups: Sequence[Group], sizes: Sequence[int]) -> Questions | None:
    if not any(group.alternatives or group.discouraged is not None or group.watched is not None for group in groups):
        return None

    def each(tokens: IntArray | None, size: int) -> IntArray:
        return np.full(size, -1, dtype=np.int64) if tokens is None else tokens

    return Questions(
        most=max(group.alternatives for group in groups),
        discouraged=np.concatenate([each(group.discouraged, size) for group, size in zip(groups, sizes, strict=True)]),
        penalty=np.repeat(np.array([group.penalty for group in groups]), sizes),
        watched=np.concatenate([each(group.watched, size) for group, size in zip(groups, sizes, strict=True)]),
        raw=np.repeat(np.array([group.watched_raw for group in groups]), sizes),
    )


@st.composite
def logit_rows(draw: st.DrawFn, rows: int, columns: int) -> FloatArray:
    """[rows, columns] logits in sixteenths, so that float32 holds them plus whole numbers; often equal ones."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        return random.integers(-2, 3, size=(rows, columns)) * draw(st.sampled_from([0.0, 0.5, 4.0]))
    spread = draw(st.sampled_from([0.5, 2.0, 8.0]))
    result: FloatArray = np.round(random.normal(size=(rows, columns)) * spread * 16) / 16
    return result


@st.composite
def calls(
    draw: st.DrawFn,
    /,
    *,
    params: st.SearchStrategy[SamplingParams],
    forbid: bool = False,
    most_requests: int = 4,
    **group: st.SearchStrategy[object],
) -> Call:
    """Calls of one to four requests with zero to three groups each.

    Args:
        params: sampling parameters of each request.
        forbid: some ids are forbidden. Their logits and those of padding are high, or as high as the best.
        most_requests: limit on requests.
        group: strategies of fields of `Group`.
    """
    vocab, padding = draw(st.integers(3, 40)), draw(st.integers(0, 3))
    forbidden = frozenset(draw(st.sets(st.integers(0, vocab - 1), max_size=2))) if forbid else frozenset[int]()
    trapped = np.array([token in forbidden or token >= vocab for token in range(vocab + padding)])
    asked = []
    for index in range(draw(st.integers(1, most_requests))):
        groups = []
        for _ in range(draw(st.integers(0 if index else 1, 3))):
            logits = draw(logit_rows(draw(st.integers(1, 5)), vocab + padding))
            best = logits[:, ~trapped].max(axis=1, keepdims=True)
            logits[:, trapped] = draw(st.sampled_from([TRAP, best]))
            groups.append(Group(logits=logits, **{name: draw(each) for name, each in group.items()}))  # type: ignore[arg-type]
        asked.append(
            Asked(
                groups=tuple(groups),
                params=_within(draw(params), vocab),
                draw=draw(st.integers(0, 5)),
                start=draw(st.integers(0, 50)),
                request_id=index,
            )
        )
    return Call(asked=tuple(asked), vocab_size=vocab, forbidden=forbidden, columns=vocab + padding)


def _within(params: SamplingParams, vocab: int) -> SamplingParams:
    """Parameters as engines admit them, without biases of ids that do not exist."""
    biases = {token: bias for token, bias in params.logit_bias.items() if token < vocab}
    return attrs.evolve(params, logit_bias=biases)
