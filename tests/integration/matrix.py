"""Every strategy with every family that it fits, configured in each of its ways, and the checkpoints to serve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import attrs

from diffulex_core.config.names import misfits
from diffulex_core.host import Host
from diffulex_core.plugin import DecodingStrategy
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.sparse import SparseConfig
from tests.families.subjects import FIRST_PARTY, PLAIN
from tests.families.test_family_engines import checkpoint

LENGTHS = (3, 11, 16, 21, 8)
"""Of the prompts that a case's requests take turns in."""
PAGE = 8
"""Positions of a page, unless a test says otherwise."""

Ask = Mapping[str, Any]
"""Sampling parameters of one request."""

MIXED: tuple[Ask, ...] = (
    {"temperature": 0.0, "max_tokens": 12},
    {"temperature": 1.0, "seed": 1, "max_tokens": 9},
    {"temperature": 0.8, "seed": 2, "top_p": 0.9, "top_k": 30, "max_tokens": 11, "logprobs": 1},
    {"temperature": 0.0, "max_tokens": 14, "thresholds": {"accept_threshold": 0.3}, "logit_bias": {60: 2.0}},
    {"temperature": 1.0, "seed": 5, "min_p": 0.02, "max_tokens": 7, "stop_token_ids": tuple(range(0, 256, 9))},
)
"""Requests that differ in everything that a request of any strategy may say."""


@attrs.frozen(kw_only=True)
class Variant:
    """One way to configure a strategy, and what the documentation promises of it.

    Attributes:
        settings: configuration keys.
        asks: its requests.
        shares: whose pages serve later requests: nobody's, the prompt's, or the prompt's and the answer's.
        resumes: a request that lost its pages goes on with the tokens that it would have had.
        chunks: prompts may be fed in pieces.
        grows: a smaller `max_tokens` gives a prefix of what a larger one gives.
        revises: a decided token may change until it is final, so that an answer cut short may hold others.
        canvas: a request holds all its pages from its first step on.
        longer: parameters of longer answers.
        sharpness: factor on the network's last norm, so that confidences lie on both sides of the thresholds.
    """

    settings: Mapping[str, Any] = attrs.field(factory=dict)
    asks: tuple[Ask, ...] = MIXED
    shares: Literal["nothing", "prompt", "answer"] = "answer"
    resumes: bool = True
    chunks: bool = True
    grows: bool = True
    revises: bool = False
    canvas: bool = False
    longer: Ask = attrs.field(factory=lambda: {"max_tokens": 24})
    sharpness: float = 3.0


BLOCKS: Mapping[str, Any] = {"buffer_size": 3, "accept_threshold": 0.4, "semi_complete_threshold": 0.5}
GEMMA: Mapping[str, Any] = {
    "diffusion_gemma_max_denoising_steps": 3,
    "diffusion_gemma_t_min": 0.1,
    "diffusion_gemma_t_max": 0.5,
    "diffusion_gemma_entropy_bound": 0.6,
    "diffusion_gemma_confidence_threshold": 0.5,
}
CANVASES: tuple[Ask, ...] = (
    {"temperature": 0.0, "gen_length": 9},
    {"temperature": 1.0, "seed": 1, "gen_length": 7, "steps": 4},
    {"temperature": 0.0, "max_tokens": 10, "cfg_scale": 1.5, "steps": 5},
    {"temperature": 0.7, "seed": 3, "top_p": 0.9, "gen_length": 6, "logprobs": 2, "ignore_eos": False},
)
LLADA_CANVASES: tuple[Ask, ...] = (
    *CANVASES,
    {"temperature": 0.0, "gen_length": 12, "block_length": 5, "steps": 6},
    {"temperature": 1.0, "seed": 4, "gen_length": 8, "remasking": "random", "steps": 5, "cfg_scale": 0.5},
    {"alg": "confidence_threshold", "gen_length": 9, "seed": 6, "thresholds": {"accept_threshold": 0.2}},
)
DREAM_CANVASES: tuple[Ask, ...] = (
    *({**ask, "alg": "maskgit_plus"} for ask in CANVASES),
    {"alg": "origin", "seed": 4, "gen_length": 8, "steps": 6},
    {"alg": "topk_margin", "seed": 5, "gen_length": 9, "steps": 6, "alg_temp": 0.3},
    {"alg": "entropy", "seed": 6, "gen_length": 7, "steps": 9, "defer_eos": True},
    {"alg": "confidence_threshold", "seed": 7, "gen_length": 8, "thresholds": {"accept_threshold": 0.2}},
)

SPARSE = SparseConfig(retention_ratio=0.4, delay_step=1, default_block_len=5, refresh_every=3)

Recipe = tuple[str, str]
"""Name of a strategy, and the sampling mode that it runs in."""

VARIANTS: Mapping[Recipe, Mapping[str, Variant]] = {
    ("multi_bd", "naive"): {
        "": Variant(settings=BLOCKS),
        "one block": Variant(settings={**BLOCKS, "buffer_size": 1}),
    },
    ("multi_bd", "edit"): {
        "": Variant(settings={**BLOCKS, "max_post_edit_steps": 2}, revises=True),
        "remasking": Variant(
            revises=True,
            settings={
                **BLOCKS,
                "enable_remask": True,
                "remask_threshold": 0.3,
                "edit_threshold": 0.3,
                "penalty_lambda": 0.5,
                "max_post_edit_steps": 3,
            },
        ),
    },
    ("d2f", "naive"): {"": Variant(settings=BLOCKS, shares="nothing", chunks=False)},
    ("dmax", "edit"): {
        "": Variant(settings=BLOCKS, shares="prompt", revises=True),
        "smooth and exact": Variant(
            settings={
                **BLOCKS,
                "token_merge_mode": "iter_smooth_topk",
                "token_merge_top_k": 3,
                "exact_confidence": True,
                "max_post_edit_steps": 3,
            },
            shares="prompt",
            revises=True,
        ),
        "without merging": Variant(settings={**BLOCKS, "token_merge_weight": 0.0}, revises=True),
    },
    ("fast_dllm_v2", "naive"): {
        "": Variant(settings={"buffer_size": 2, "accept_threshold": 0.4}, resumes=False),
        "without block cache": Variant(
            settings={"buffer_size": 2, "accept_threshold": 0.4, "fdv2_use_block_cache": False}
        ),
    },
    ("diffusion_gemma", "naive"): {
        "": Variant(settings=GEMMA),
        "shortened": Variant(settings={**GEMMA, "diffusion_gemma_shorten_last_canvas": True}, grows=False),
    },
    ("llada_canvas", "naive"): {
        "": Variant(
            asks=LLADA_CANVASES, shares="nothing", chunks=False, grows=False, canvas=True, longer={"gen_length": 14}
        ),
        "sparse": Variant(
            settings={"sparse": SPARSE},
            asks=LLADA_CANVASES,
            shares="nothing",
            chunks=False,
            grows=False,
            canvas=True,
            longer={"gen_length": 14},
        ),
    },
    ("dream_canvas", "naive"): {
        "": Variant(
            asks=DREAM_CANVASES, shares="nothing", chunks=False, grows=False, canvas=True, longer={"gen_length": 14}
        ),
        "sparse": Variant(
            settings={"sparse": SPARSE},
            asks=DREAM_CANVASES,
            shares="nothing",
            chunks=False,
            grows=False,
            canvas=True,
            longer={"gen_length": 14},
        ),
    },
}


@attrs.frozen(kw_only=True)
class Case:
    """A strategy in a mode, configured in one way, over one family."""

    family: str
    recipe: Recipe
    variant_name: str
    variant: Variant

    def __str__(self) -> str:
        strategy, mode = self.recipe
        words = [strategy, *([mode] if mode != "naive" else []), *([self.variant_name] if self.variant_name else [])]
        return f"{self.family} {', '.join(words)}"

    @property
    def asks(self) -> list[SamplingParams]:
        return [params(ask, number) for number, ask in enumerate(self.variant.asks)]

    @property
    def prompts(self) -> list[list[int]]:
        return [prompt(LENGTHS[number % len(LENGTHS)], number) for number in range(len(self.variant.asks))]


def params(ask: Ask, seed: int) -> SamplingParams:
    """A request's parameters; past the end of text and with a seed unless it says otherwise."""
    return SamplingParams(**{"ignore_eos": True, "seed": 100 + seed, **ask})


def prompt(length: int, salt: int = 0) -> list[int]:
    """Ordinary tokens."""
    return [(7 * at * at + 13 * at + 31 * salt + 5) % 200 + 20 for at in range(length)]


def first_party(host: Host) -> list[DecodingStrategy]:
    """The strategies of the plugins of this project."""
    return [entry.descriptor for entry in host.strategies.entries() if entry.provenance.dist.startswith(FIRST_PARTY)]


def recipes(host: Host) -> set[Recipe]:
    """Every strategy in every mode that it can run in."""
    found = set()
    for strategy in first_party(host):
        forced = strategy.forces.get("sampling_mode")
        modes = ["naive", *strategy.modes] if forced is None else [str(forced)]
        found.update((strategy.name, mode) for mode in modes)
    return found


def cases(host: Host) -> Iterator[Case]:
    """Every recipe over every family that can run it; the first such family in each variant, the others in the first.

    A family with shifted logits is another first one: rows are carried there.
    """
    for recipe in sorted(recipes(host)):
        strategy = host.strategies.get(recipe[0]).in_mode(recipe[1])
        fitting = [subject.family for subject in PLAIN if not misfits(subject.family, strategy, host)]
        seen = set[str]()
        for family in fitting:
            variants = list(VARIANTS.get(recipe, {}).items())
            for name, variant in variants if family.logits not in seen else variants[:1]:
                yield Case(family=family.name, recipe=recipe, variant_name=name, variant=variant)
            seen.add(family.logits)


@cache
def host() -> Host:
    """The installed plugins."""
    return Host.discover(environ={})


CASES = list(cases(host()))


class Checkpoints:
    """Random checkpoints of the families, written when they are asked for."""

    def __init__(self) -> None:
        self._root = TemporaryDirectory()
        self._written: dict[str, Path] = {}

    def __call__(self, family: str) -> Path:
        if family not in self._written:
            [subject] = (each for each in PLAIN if each.family.name == family)
            self._written[family] = checkpoint(subject, Path(self._root.name) / family)
        return self._written[family]

    def close(self) -> None:
        self._root.cleanup()
