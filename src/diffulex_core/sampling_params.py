"""Per-request sampling parameters and decoding thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeGuard, TypeVar

import attrs
import numpy as np

from diffulex_core.canvas.params import CanvasParams
from diffulex_core.errors import InvalidSamplingParams
from diffulex_core.sparse.config import SparseConfig

Confidence = Literal["prob", "margin", "neg_entropy"]
CONFIDENCES: tuple[Confidence, ...] = ("prob", "margin", "neg_entropy")

COOLEST, HOTTEST = 1e-6, 1e6
"""Temperatures above 0 beyond which tempered logits leave the range of float32."""
STRONGEST_BIAS = 1e6
"""Largest logit bias either way; -inf, which forbids a token, is allowed as well."""
MOST_LOGPROBS = 20
"""Most alternatives that are reported for each token."""

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class DecodingThresholds:
    """When blocks start and when tokens are decided; all in [0, 1]. Source: the decoding rules of the strategies.

    Attributes:
        add_block_threshold: the last running block must be filled to at least this share before the next one starts.
        semi_complete_threshold: a block whose predecessor is filled to at least this share decides one token each step.
        accept_threshold: a masked position is decided when its confidence is strictly greater.
        edit_threshold: a decided token is replaced when the new one's probability is strictly greater (edit sampling).
        remask_threshold: a decided token whose probability falls below returns to mask (edit sampling, opt-in).
        token_stability_threshold: share of unchanged tokens that the last running block needs before the next starts.
    """

    add_block_threshold: float = 0.1
    semi_complete_threshold: float = 0.9
    accept_threshold: float = 0.9
    edit_threshold: float = 0.0
    remask_threshold: float = 0.4
    token_stability_threshold: float = 0.0

    def problems(self) -> list[str]:
        """One sentence for each value outside [0, 1]."""
        return [
            f"{name} is {value!r}, but a threshold lies between 0 and 1."
            for name, value in attrs.asdict(self).items()
            if not _is_number(value) or not 0 <= value <= 1
        ]


def _plain(value: T) -> T:
    """A numpy scalar as the Python number that it is."""
    return value.item() if isinstance(value, np.generic) else value


# Not one generic function: type checkers would accept everything as an argument of the constructor.
def _number(value: float) -> float:
    return _plain(value)


def _whole(value: int) -> int:
    return _plain(value)


def _whole_or_none(value: int | None) -> int | None:
    return _plain(value)


def _flag(value: bool) -> bool:
    return _plain(value)


# What cannot be converted is passed on as it is, for the validation to name.
def _texts(value: str | Iterable[str] | None) -> tuple[str, ...]:
    return tuple(value or ()) if isinstance(value, Iterable) and not isinstance(value, str) else _one(value)


def _token_ids(value: int | Iterable[int] | None) -> tuple[int, ...]:
    return tuple(map(_plain, value)) if isinstance(value, Iterable) else _one(_plain(value))


def _one(value: T | None) -> tuple[T, ...]:
    return () if value is None else (value,)


def _by_name(value: Mapping[str, float] | None) -> Mapping[str, float]:
    if not isinstance(value, Mapping):
        return {} if value is None else value
    return {name: _plain(each) for name, each in value.items()}


def _by_token(value: Mapping[int, float] | None) -> Mapping[int, float]:
    if not isinstance(value, Mapping):
        return {} if value is None else value
    return {_plain(token): _plain(bias) for token, bias in value.items()}


def _sparse(value: SparseConfig | Mapping[str, Any] | None) -> SparseConfig | None:
    if not isinstance(value, Mapping):
        return value
    names = [field.name for field in attrs.fields(SparseConfig)]
    if unknown := [name for name in value if name not in names]:
        raise InvalidSamplingParams(f"sparse holds {', '.join(map(repr, unknown))}; the fields are {', '.join(names)}.")
    return SparseConfig(**value)


@attrs.frozen(kw_only=True)
class SamplingParams(CanvasParams):
    """How one request is decoded; for the settings of fixed-length generation see `CanvasParams`.

    Attributes:
        temperature: 0 is greedy (ties go to the highest token id); above 0 (1e-6 to 1e6) tokens are drawn from the
            tempered distribution.
        max_tokens: limit on new tokens.
        max_nfe: limit on forwards that the request takes part in, prefill included; None = no limit.
        max_repetition_run: stop when the answer ends in this many equal tokens; None = never.
        ignore_eos: keep going past the end-of-text token.
        top_p: smallest set of the most probable tokens whose probability together exceeds this; 1 = all.
        top_k: the k most probable tokens; None = all.
        min_p: drop tokens less probable than this share of the most probable one; 0 = none.
        seed: seed of this request's draws; None draws one when the request is added. The output never depends on
            what else is in the batch.
        stop: strings that end the answer; they are not part of it.
        stop_token_ids: token ids that end the answer, whatever `ignore_eos` says.
        confidence: what is compared with `accept_threshold`: the probability of the chosen token, the margin between
            the two most probable tokens, or exp of the negative entropy (1 = certain, 1/n = n equal tokens).
        thresholds: overrides of the engine's decoding thresholds, by name.
        logit_bias: added to the logits of these token ids; -inf forbids a token.
        logprobs: report the log probability of every token of the answer in the forward that decided it, before
            temperature, top_p, top_k and min_p, and so many of the most probable tokens beside it (0 to 20); None = no.
        skip_special_tokens: leave special tokens out of the text.
        sparse: the sparse cache of a canvas, or a dict of its fields; None = as the engine's configuration says.
    """

    temperature: float = attrs.field(default=1.0, converter=_number)
    max_tokens: int = attrs.field(default=512, converter=_whole)
    max_nfe: int | None = attrs.field(default=None, converter=_whole_or_none)
    max_repetition_run: int | None = attrs.field(default=None, converter=_whole_or_none)
    ignore_eos: bool = attrs.field(default=False, converter=_flag)
    top_p: float = attrs.field(default=1.0, converter=_number)
    top_k: int | None = attrs.field(default=None, converter=_whole_or_none)
    min_p: float = attrs.field(default=0.0, converter=_number)
    seed: int | None = attrs.field(default=None, converter=_whole_or_none)
    stop: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    stop_token_ids: tuple[int, ...] = attrs.field(default=(), converter=_token_ids)
    confidence: Confidence = "prob"
    thresholds: Mapping[str, float] = attrs.field(factory=dict, converter=_by_name)
    logit_bias: Mapping[int, float] = attrs.field(factory=dict, converter=_by_token)
    logprobs: int | None = attrs.field(default=None, converter=_whole_or_none)
    skip_special_tokens: bool = attrs.field(default=True, converter=_flag)
    sparse: SparseConfig | None = attrs.field(default=None, converter=_sparse)

    def __attrs_post_init__(self) -> None:
        problems = [*self._number_problems(), *self._other_problems(), *self.canvas_problems()]
        if problems:
            raise InvalidSamplingParams(" ".join(problems))

    def resolve_thresholds(self, defaults: DecodingThresholds) -> DecodingThresholds:
        """The engine's thresholds with this request's overrides."""
        return attrs.evolve(defaults, **self.thresholds)

    def _number_problems(self) -> list[str]:
        problems = []
        if not _is_number(self.temperature) or not (self.temperature == 0 or COOLEST <= self.temperature <= HOTTEST):
            problems.append(
                f"temperature is {self.temperature!r}; give 0 for greedy decoding or a number from {COOLEST:g} to "
                f"{HOTTEST:g}."
            )
        for name, value, optional in (
            ("max_tokens", self.max_tokens, False),
            ("max_nfe", self.max_nfe, True),
            ("max_repetition_run", self.max_repetition_run, True),
            ("top_k", self.top_k, True),
        ):
            if not (optional and value is None) and not (_is_int(value) and value >= 1):
                problems.append(f"{name} is {value!r}; give a whole number of at least 1{' or None' * optional}.")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            problems.append(f"top_p is {self.top_p!r}; give a number above 0 and at most 1.")
        if not _is_number(self.min_p) or not 0 <= self.min_p <= 1:
            problems.append(f"min_p is {self.min_p!r}; give a number between 0 and 1.")
        if self.logprobs is not None and not (_is_int(self.logprobs) and 0 <= self.logprobs <= MOST_LOGPROBS):
            problems.append(
                f"logprobs is {self.logprobs!r}; give a whole number from 0 (only the chosen tokens) to "
                f"{MOST_LOGPROBS}, or None."
            )
        if self.seed is not None and not _is_int(self.seed):
            problems.append(f"seed is {self.seed!r}; give a whole number or None.")
        return problems

    def _other_problems(self) -> list[str]:
        problems = []
        if self.confidence not in CONFIDENCES:
            problems.append(f"confidence is {self.confidence!r}; choose one of {', '.join(CONFIDENCES)}.")
        if any(not isinstance(text, str) or not text for text in self.stop):
            problems.append("stop holds an empty or non-text entry; give non-empty strings.")
        if any(not _is_int(token) or token < 0 for token in self.stop_token_ids):
            problems.append("stop_token_ids holds something that is not a token id.")
        for name, flag in (("ignore_eos", self.ignore_eos), ("skip_special_tokens", self.skip_special_tokens)):
            if not isinstance(flag, bool):
                problems.append(f"{name} is {flag!r}; give True or False.")
        if not isinstance(self.logit_bias, Mapping) or not all(
            _is_int(token) and token >= 0 and _is_bias(bias) for token, bias in self.logit_bias.items()
        ):
            problems.append(
                f"logit_bias maps token ids to numbers between {-STRONGEST_BIAS:g} and {STRONGEST_BIAS:g}, or -inf to "
                "forbid a token; another kind of key or value was given."
            )
        if isinstance(self.sparse, SparseConfig):
            problems += self.sparse.problems()
        elif self.sparse is not None:
            problems.append(f"sparse is of type {type(self.sparse).__name__}; give a SparseConfig, a dict or None.")
        names = [field.name for field in attrs.fields(DecodingThresholds)]
        if not isinstance(self.thresholds, Mapping):
            problems.append(f"thresholds is {self.thresholds!r}; give a dict from threshold names to numbers.")
        elif unknown := [name for name in self.thresholds if name not in names]:
            problems.append(f"thresholds holds {', '.join(map(repr, unknown))}; the names are {', '.join(names)}.")
        else:
            problems += attrs.evolve(DecodingThresholds(), **self.thresholds).problems()
        return problems


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_bias(value: object) -> bool:
    return value == -math.inf or (_is_number(value) and abs(value) <= STRONGEST_BIAS)


def _is_number(value: object) -> TypeGuard[float]:
    # NaN is the only number that differs from itself; math.isnan fails on whole numbers beyond float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
