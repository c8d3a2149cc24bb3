"""Every sampling parameter of a request, for every strategy: what it does, or that it is not heeded, as documented.

`CONTROLS` is the inventory: a field of `SamplingParams` without an entry fails a test here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any

import attrs
import pytest

from diffulex_core.canvas.params import CanvasParams
from diffulex_core.outputs import ReqTrajectory, TokenLogprob
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import CompletionReason
from tests.core.checkpoints import EOS, EOS_ID
from tests.integration.matrix import CASES, VARIANTS, Case, Checkpoints, Recipe, prompt
from tests.integration.watched import Watched, tokens

ROOT = Path(__file__).parents[2]
ONE_OF_EACH = [next(case for case in CASES if case.recipe == recipe) for recipe in sorted(VARIANTS)]
LENGTH = 12
GEMMA, DMAX, EDIT = ("diffusion_gemma", "naive"), ("dmax", "edit"), ("multi_bd", "edit")
LLADA, DREAM = ("llada_canvas", "naive"), ("dream_canvas", "naive")


class Table:
    """Answers of one strategy to three prompts, for whatever parameters."""

    def __init__(self, case: Case, checkpoints: Checkpoints) -> None:
        self.case, self._checkpoints = case, checkpoints
        self._plain: dict[float, list[ReqTrajectory]] = {}
        self._ready: dict[float, Watched] = {}
        """Engines without settings of their own."""

    def ask(
        self, settings: Mapping[str, Any] | None = None, *, sharpness: float = 3.0, **given: Any
    ) -> list[ReqTrajectory]:
        """Greedy answers past the end of text, unless told otherwise."""
        case = attrs.evolve(self.case, variant=attrs.evolve(self.case.variant, sharpness=sharpness))
        canvas: dict[str, Any] = {"gen_length": LENGTH, "steps": 7} if case.variant.canvas else {}
        if case.recipe[0] == "dream_canvas":
            canvas["alg"] = "maskgit_plus"
        base = {"temperature": 0.0, "max_tokens": LENGTH, "ignore_eos": True, "seed": 7, **canvas}
        params = SamplingParams(**{**base, **given})
        prompts = [prompt(6 + 3 * number, number) for number in range(3)]
        with ExitStack() as leave:
            if settings is None:
                if sharpness not in self._ready:
                    self._ready[sharpness] = Watched(case, self._checkpoints, enable_prefix_caching=False)
                ready = self._ready[sharpness]
            else:
                ready = leave.enter_context(Watched(case, self._checkpoints, **settings))
            return ready.serve(prompts, [params] * len(prompts))

    def close(self) -> None:
        """Close the engines."""
        for ready in self._ready.values():
            ready.engine.close()

    def plain(self, sharpness: float = 3.0) -> list[ReqTrajectory]:
        """Without any parameter."""
        if sharpness not in self._plain:
            self._plain[sharpness] = self.ask(sharpness=sharpness)
        return self._plain[sharpness]


@pytest.fixture(scope="module")
def checkpoints() -> Iterator[Checkpoints]:
    made = Checkpoints()
    yield made
    made.close()


@pytest.fixture(scope="module")
def tables(checkpoints: Checkpoints) -> Iterator[dict[Recipe, Table]]:
    made = {case.recipe: Table(case, checkpoints) for case in ONE_OF_EACH}
    yield made
    for table in made.values():
        table.close()


def told(answers: list[ReqTrajectory]) -> list[TokenLogprob]:
    """What is known of the tokens that were decided as the network was asked."""
    return [each for answer in answers for each in answer.logprobs or () if each is not None]


def rank(token: TokenLogprob) -> int:
    """Tokens that were more probable, twenty at most."""
    return sum(logprob > token.logprob for _, logprob in token.top)


def temperature(table: Table) -> None:
    means = [
        fmean(each.logprob for each in told(table.ask(temperature=degree, logprobs=0))) for degree in (0.0, 1.0, 3.0)
    ]
    assert means[0] > means[1] > means[2]


def top_p(table: Table) -> None:
    """At temperature 1 the tokens before a chosen one hold no more than p together."""

    def before(p: float) -> list[float]:
        drawn = table.ask(temperature=1.0, top_p=p, logprobs=20, sharpness=2.0)
        return [sum(math.exp(other) for _, other in each.top if other > each.logprob) for each in told(drawn)]

    assert max(before(0.3)) <= 0.3 + 1e-5
    assert max(before(1.0)) > 0.3


def top_k(table: Table) -> None:
    ranks = [
        max(rank(each) for each in told(table.ask(temperature=1.0, top_k=k, logprobs=20, sharpness=1.0)))
        for k in (1, 3, None)
    ]
    assert ranks[0] == 0
    assert 0 < ranks[1] <= 2
    assert ranks[2] > 2


def min_p(table: Table) -> None:
    def shares(p: float) -> list[float]:
        drawn = table.ask(temperature=1.0, min_p=p, logprobs=1, sharpness=2.0)
        return [math.exp(each.logprob - each.top[0][1]) for each in told(drawn)]

    assert min(shares(0.3)) >= 0.3 - 1e-5
    assert min(shares(0.0)) < 0.3


def seed(table: Table) -> None:
    one, other, again = (tokens(table.ask(temperature=1.0, seed=seed)) for seed in (1, 2, 1))
    assert one == again
    assert one != other


def stop(table: Table) -> None:
    whole = table.plain()
    found = re.search(r"[!-~]", whole[0].text[3:])
    assert found, "nothing to stop at"
    cut = table.ask(stop=found.group())
    assert cut[0].completion_reason is CompletionReason.STOP_STRING
    for answer, full in zip(cut, whole, strict=True):
        assert answer.text == full.text.split(found.group())[0]
        assert answer.token_ids == full.token_ids[: len(answer.token_ids)]
        assert answer.nfe <= full.nfe


def stop_token_ids(table: Table) -> None:
    whole = table.plain()
    ends = {whole[0].token_ids[5], whole[2].token_ids[9]}
    check_cut(table, table.ask(stop_token_ids=ends), ends, CompletionReason.STOP_TOKEN)


def ignore_eos(table: Table) -> None:
    """Several end tokens; the earliest of any of them ends an answer, unless they are ignored."""
    whole = table.plain()
    ends = {whole[0].token_ids[5], whole[2].token_ids[9]}
    settings = {"eos_token_ids": sorted(ends)}
    check_cut(table, table.ask(settings, ignore_eos=False), ends, CompletionReason.STOP_EOS)
    assert tokens(table.ask(settings, ignore_eos=True)) == tokens(whole)


def check_cut(table: Table, cut: list[ReqTrajectory], ends: set[int], reason: CompletionReason) -> None:
    """Answers end before the first of `ends`, in no more forwards.

    Where tokens are revised, an end that is edited away held back the blocks behind it, so other tokens may follow.
    """
    for answer, full in zip(cut, table.plain(), strict=True):
        ended = answer.completion_reason is reason
        assert not ends & set(answer.token_ids)
        assert ended or (len(answer.token_ids), answer.completion_reason) == (LENGTH, CompletionReason.LENGTH_TOKENS)
        if not table.case.variant.revises:
            at = next((at for at, token in enumerate(full.token_ids) if token in ends), None)
            assert answer.token_ids == full.token_ids[:at]
            assert ended == (at is not None)
            assert answer.nfe <= full.nfe
    assert reason in {answer.completion_reason for answer in cut}


def max_tokens(table: Table) -> None:
    canvas = {"gen_length": None} if table.case.variant.canvas else {}
    for limit in (1, 6, 11):
        answers = table.ask(max_tokens=limit, **canvas)
        assert [len(answer.token_ids) for answer in answers] == [limit] * len(answers)
        assert {answer.completion_reason for answer in answers} == {CompletionReason.LENGTH_TOKENS}


def max_nfe(table: Table) -> None:
    whole = table.plain()
    for limit in (1, 2):
        for answer, full in zip(table.ask(max_nfe=limit), whole, strict=True):
            assert answer.nfe == min(limit, full.nfe)
            assert (answer.completion_reason is CompletionReason.NFE_LIMIT) == (full.nfe > limit)
            assert len(answer.token_ids) <= len(full.token_ids)
            if not table.case.variant.revises:
                assert answer.token_ids == full.token_ids[: len(answer.token_ids)]
    assert tokens(table.ask(max_nfe=10_000)) == tokens(whole)


def auto_max_nfe(table: Table) -> None:
    """Off by default; a request's own limit comes first, also where it is larger."""
    capped = {"auto_max_nfe": True, "auto_max_nfe_warmup_steps": 1, "auto_max_nfe_tpf_floor": LENGTH / 2}
    assert max(answer.nfe for answer in table.plain()) > 2
    assert max(answer.nfe for answer in table.ask(capped)) == 2
    assert CompletionReason.NFE_LIMIT in {answer.completion_reason for answer in table.ask(capped)}
    assert tokens(table.ask(capped, max_nfe=10_000)) == tokens(table.plain())
    warm = {**capped, "auto_max_nfe_warmup_steps": 10_000}
    assert tokens(table.ask(warm)) == tokens(table.plain())
    patient = {**capped, "auto_max_nfe_tpf_floor": 1e-3}
    assert tokens(table.ask(patient)) == tokens(table.plain())


def max_repetition_run(table: Table) -> None:
    """An answer of equal tokens ends as soon as the run is final."""
    same: dict[str, Any] = {"logit_bias": {60: 1000.0}, "thresholds": {"accept_threshold": 1.0}}
    if table.case.recipe == DREAM:
        # Positions come in any order; under this seed the last one is not among the first three.
        same |= {"alg": "origin", "steps": 40, "seed": 5}
    whole = table.ask(**same)
    assert set(whole[0].token_ids) == {60}
    for answer, full in zip(table.ask(max_repetition_run=3, **same), whole, strict=True):
        assert answer.completion_reason is CompletionReason.REPETITION
        assert 3 <= len(answer.token_ids) < LENGTH
        assert answer.nfe < full.nfe
    assert tokens(table.ask(max_repetition_run=LENGTH + 1, **same)) == tokens(whole)


def logit_bias(table: Table) -> None:
    assert {token for answer in table.ask(logit_bias={60: 1000.0}) for token in answer.token_ids} == {60}
    used = {token for answer in table.plain() for token in answer.token_ids}
    without = table.ask(logit_bias=dict.fromkeys(used, -math.inf))
    assert not used & {token for answer in without for token in answer.token_ids}


def logprobs(table: Table) -> None:
    plain = table.plain()
    assert [answer.logprobs for answer in plain] == [None] * len(plain)
    for count in (0, 1, 5):
        answers = table.ask(logprobs=count)
        assert tokens(answers) == tokens(plain)
        assert {len(each.top) for each in told(answers)} == {count}
        assert len(told(answers)) > 0.8 * sum(len(answer.token_ids) for answer in answers)
        assert all(each.logprob <= 0 for each in told(answers))


def confidence(table: Table) -> None:
    """A margin is never more than the probability, so that no step takes more; forwards are those of four answers."""
    accept = {"thresholds": {"accept_threshold": 0.4}}
    spent = {
        measure: sum(answer.nfe for answer in table.ask(confidence=measure, **accept)) for measure in ("prob", "margin")
    }
    assert spent["margin"] > spent["prob"]
    assert tokens(table.ask(confidence="neg_entropy", **accept)) != tokens(table.ask(**accept))


def thresholds(table: Table) -> None:
    """A request's own threshold is as good as the engine's, and only the request's."""
    by_threshold = {"alg": "confidence_threshold"} if table.case.variant.canvas else {}
    low, high = ({"accept_threshold": value} for value in (0.05, 0.95))
    ours = table.ask(low, **by_threshold)
    assert tokens(table.ask(high, thresholds=low, **by_threshold)) == tokens(ours)
    assert sum(answer.nfe for answer in table.ask(high, **by_threshold)) > sum(answer.nfe for answer in ours)


def skip_special_tokens(table: Table) -> None:
    ends = {"logit_bias": {EOS_ID: 1000.0}}
    assert table.ask(**ends)[0].text == ""
    assert table.ask(**ends, skip_special_tokens=False)[0].text == LENGTH * EOS


def unheeded(**given: Any) -> Callable[[Table], None]:
    """The parameter changes nothing."""

    def check(table: Table) -> None:
        assert tokens(table.ask(**given)) == tokens(table.plain())

    return check


def heeded(**given: Any) -> Callable[[Table], None]:
    """The parameter changes answers."""

    def check(table: Table) -> None:
        assert tokens(table.ask(**given)) != tokens(table.plain())

    return check


CONTROLS: Mapping[str, Callable[[Table], None]] = {
    check.__name__: check
    for check in (
        temperature,
        top_p,
        top_k,
        min_p,
        seed,
        stop,
        stop_token_ids,
        ignore_eos,
        max_tokens,
        max_nfe,
        auto_max_nfe,
        max_repetition_run,
        logit_bias,
        logprobs,
        confidence,
        thresholds,
        skip_special_tokens,
    )
}
OTHERWISE: Mapping[tuple[Recipe, str], Callable[[Table], None]] = {
    # A schedule takes its place.
    (GEMMA, "temperature"): unheeded(temperature=2.0),
    (GEMMA, "thresholds"): unheeded(thresholds={"accept_threshold": 0.0, "add_block_threshold": 1.0}),
    # They limit what is drawn into the canvas; what is accepted in the end are the most probable tokens.
    (GEMMA, "top_p"): heeded(top_p=0.1),
    (GEMMA, "top_k"): heeded(top_k=1),
    (GEMMA, "min_p"): heeded(min_p=0.9),
    # The measure is also that of edits, which take forwards of their own.
    (EDIT, "confidence"): heeded(confidence="margin"),
    # These strategies say themselves what confidence is.
    **{
        (recipe, "confidence"): unheeded(confidence=measure)
        for recipe, measure in ((GEMMA, "margin"), (DMAX, "margin"), (LLADA, "margin"), (DREAM, "neg_entropy"))
    },
}
"""What a parameter does where it does not do what it does elsewhere."""

ELSEWHERE: Mapping[str, tuple[str, str]] = {
    **{
        field.name: ("tests/integration/test_canvas.py", "test_settings_of_a_canvas_are_refused_by_other_strategies")
        for field in attrs.fields(CanvasParams)
    },
    "sparse": (
        "tests/integration/test_sparse_oracle.py",
        "test_llada_decides_what_the_oracle_does_and_feeds_as_many_rows",
    ),
}
"""Parameters of some strategies only. Those that use the canvas's own find them as keys in `test_knobs.KNOBS`."""


def test_every_parameter_has_a_test() -> None:
    assert {field.name for field in attrs.fields(SamplingParams)} | {"auto_max_nfe"} == {*CONTROLS, *ELSEWHERE}
    for path, test in ELSEWHERE.values():
        assert f"def {test}(" in (ROOT / path).read_text()


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_a_parameter_does_what_its_documentation_says(case: Case, control: str, tables: dict[Recipe, Table]) -> None:
    OTHERWISE.get((case.recipe, control), CONTROLS[control])(tables[case.recipe])
