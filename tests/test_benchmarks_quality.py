"""The pure parts of benchmarks/quality.py: edits, stores, curves, the comparison and tables."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from benchmarks import quality, quality_curves, quality_results, quality_sweeps, quality_tables
from benchmarks.nfe import PARITY
from benchmarks.quality_results import Edits, EditWatch, Result, Speed
from hypothesis import given, strategies as st

from diffulex_core.engine import Diffulex
from diffulex_core.outputs import GenerationOutputs, ReqStep, ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import Canvas, CompletionReason
from diffulex_tiny.evaluate import wilson
from diffulex_tiny.source import TinySource

MASKED = -1
POINTS = st.lists(st.tuples(st.floats(0.1, 8), st.integers(0, 20).map(lambda hits: hits / 20)), min_size=1, max_size=8)


def result(**changes: Any) -> Result:
    plain: dict[str, Any] = {
        "model": "m", "task": "long", "way": "multi_bd", "strategy": "multi_bd", "knob": "accept_threshold",
        "value": 0.9, "settings": {"block_size": 4, "buffer_size": 4, "accept_threshold": 0.9}, "problems": 100,
        "exact": 98, "answer_tokens": 70, "tpf": 3.0, "tpf_total": 2.5, "tpf_stores": None, "forwards": 20.0,
        "rows": 300.0, "head_rows": 100.0, "rows_per_forward": 12.0, "edits": None, "reasons": {"stop_eos": 1.0},
    }  # fmt: skip
    return Result(**{**plain, **changes})


def one_block(**changes: Any) -> Result:
    settings = {"block_size": 4, "buffer_size": 1, "accept_threshold": 0.9}
    return result(**{"settings": settings, "tpf": 2.0, "tpf_stores": 1.6, "exact": 100, **changes})


def canvas(*tokens: int) -> Canvas:
    found = np.array(tokens, dtype=np.int64)
    return Canvas(start=5, tokens=found, decided=found != MASKED, committed=0, block_size=4, running_blocks=())


def answer(*, prompt: int, committed: int, decode: int, tokens: int = 8) -> ReqTrajectory:
    step = ReqStep(step_id=0, step_time=0.0, is_prefill=False, num_generated_tokens=1, rows=6, catch_up_rows=2)
    first = attrs.evolve(step, is_prefill=True)
    return ReqTrajectory(
        req_id=0,
        token_ids=(1,) * tokens,
        text="text",
        completion_reason=CompletionReason.STOP_EOS,
        trajectory=(first, *(step,) * decode),
        prompt_tokens=prompt,
        tokens_committed=committed,
    )


def test_an_edit_helps_when_it_puts_the_right_token_and_hurts_when_it_takes_it_away() -> None:
    watch = EditWatch(expected=[7, 8])
    for step in (canvas(7, 9), canvas(6, 8, 1), canvas(6, 8, 2), canvas(5, 8, 2)):
        watch.see(step)
    assert watch.edits == Edits(made=4, helped=1, hurt=1)


def test_a_token_that_was_masked_in_between_counts_as_edited_when_another_one_comes() -> None:
    watch = EditWatch(expected=[7, 8])
    for step in (canvas(9, 8), canvas(MASKED, MASKED), canvas(7, 8)):
        watch.see(step)
    assert watch.edits == Edits(made=1, helped=1)


@given(st.lists(st.lists(st.integers(MASKED, 2), min_size=4, max_size=4), min_size=1, max_size=8))
def test_helped_less_hurt_is_what_revising_gained(steps: list[list[int]]) -> None:
    expected = [0, 1, 2]
    watch = EditWatch(expected=expected)
    for step in steps:
        watch.see(canvas(*step))
    told = [[step[at] for step in steps if step[at] != MASKED] for at in range(len(expected))]
    gained = sum((each[-1] == want) - (each[0] == want) for each, want in zip(told, expected, strict=True) if each)
    assert watch.edits.helped - watch.edits.hurt == gained


def test_edits_are_as_many_as_the_engine_records() -> None:
    recording = json.loads((PARITY / "vectors" / "llada2-dmax.json").read_text())
    case = recording["cases"][0]
    watch = EditWatch(expected=case["tokens"])
    with Diffulex(PARITY / "checkpoints" / recording["checkpoint"], **recording["config"], num_pages=64) as engine:
        generation = engine.stream([case["prompt"]], SamplingParams(**recording["sampling"], max_tokens=16))
        for event in generation:
            watch.see(event.canvas)
        [found] = generation.outputs
    assert watch.edits.made == found.tokens_edited > 0
    assert watch.edits.helped > watch.edits.hurt


@pytest.mark.parametrize(
    ("prompt", "committed", "blocks"),
    [(8, 8, 2), (6, 2, 1), (6, 10, 3), (6, 0, 0)],
)
def test_stored_blocks_are_those_with_tokens_of_the_answer(prompt: int, committed: int, blocks: int) -> None:
    found = quality_results.stored_blocks(answer(prompt=prompt, committed=committed, decode=4), 4)
    assert found == blocks


def test_stores_are_the_forwards_that_diffulex_0_1_spent_beyond_ours() -> None:
    recording = json.loads((PARITY / "vectors" / "llada2-b1.json").read_text())
    case = next(case for case in recording["cases"] if len(case["prompt"]) == 19)
    params = SamplingParams(**recording["sampling"], max_tokens=len(case["tokens"]))
    with Diffulex(PARITY / "checkpoints" / recording["checkpoint"], **recording["config"], num_pages=64) as engine:
        [found] = engine.generate(case["prompt"], params)
    stores = quality_results.stored_blocks(found, recording["config"]["block_size"])
    assert found.nfe + stores == case["reference_forwards"]


def test_counts_are_means_over_answers_and_stores_cost_a_forward_each() -> None:
    answers = (answer(prompt=8, committed=8, decode=2), answer(prompt=8, committed=0, decode=4))
    outputs = GenerationOutputs(trajectories=answers, prefill_tokens=20, decode_rows=40, head_rows=10)
    found = quality_results.counted(outputs, stores_alone=4)
    assert found["tpf"] == (8 / 2 + 8 / 4) / 2
    assert found["tpf_stores"] == (8 / 4 + 8 / 4) / 2
    assert found["tpf_total"] == (8 / 3 + 8 / 5) / 2
    assert (found["forwards"], found["rows"], found["head_rows"]) == (4, 30, 5)
    assert found["rows_per_forward"] == 4
    assert found["reasons"] == {"stop_eos": 1.0}
    assert quality_results.counted(outputs, stores_alone=None)["tpf_stores"] is None


@pytest.mark.parametrize("changes", [{"text": "texT"}, {"completion_reason": CompletionReason.LENGTH_TOKENS}])
def test_an_answer_is_right_when_text_and_end_are(changes: dict[str, Any]) -> None:
    right = answer(prompt=8, committed=8, decode=2)
    assert quality_results.is_right(right, "text")
    assert not quality_results.is_right(attrs.evolve(right, **changes), "text")


@given(POINTS)
def test_no_point_beats_one_of_the_edge_and_each_other_point_is_beaten(points: list[tuple[float, float]]) -> None:
    kept = quality_curves.edge(points)
    assert list(kept) == sorted(kept)

    def beaten(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in points)

    assert set(kept) == {point for point in points if not beaten(point)}


@given(POINTS)
def test_the_area_is_the_integral_of_the_best_accuracy_at_a_speed(points: list[tuple[float, float]]) -> None:
    speeds = sorted({0.0, *(tpf for tpf, _ in points)})
    expected = sum(
        (end - begin) * max(accuracy for tpf, accuracy in points if tpf >= end)
        for begin, end in itertools.pairwise(speeds)
    )
    assert quality_curves.area(points) == pytest.approx(expected)


def test_a_way_that_is_always_right_has_its_highest_tpf_as_area() -> None:
    assert quality_curves.area([(1.0, 1.0), (3.0, 1.0), (2.0, 0.5)]) == 3.0


def test_a_curve_tells_how_fast_its_way_is_without_losing_more_than_two_points() -> None:
    points = [(2.0, 100), (3.0, 98), (4.0, 97)]
    [curve] = quality_curves.curves([result(tpf=tpf, exact=exact) for tpf, exact in points])
    assert curve.fastest == 3.0
    assert curve.edge == ((2.0, 1.0), (3.0, 0.98), (4.0, 0.97))
    assert curve.good == 4.0


def test_a_way_that_is_never_good_enough_has_no_speed_of_being_so() -> None:
    [curve] = quality_curves.curves([result(exact=96)])
    assert curve.good is None


def test_several_blocks_are_compared_with_one_where_all_else_is_equal() -> None:
    [pair] = quality_curves.comparisons([one_block(), result()])
    assert (pair.ratio, pair.ratio_stores) == (1.5, 3.0 / 1.6)
    assert pair.lost == pytest.approx(0.02)
    assert pair.met


def test_several_blocks_are_also_compared_with_the_fastest_one_that_is_as_exact_at_any_threshold() -> None:
    def one(accept: float, **changes: Any) -> Result:
        settings = {"block_size": 4, "buffer_size": 1, "accept_threshold": accept}
        return result(settings=settings, tpf_stores=1.0, **changes)

    singles = [one(0.9, tpf=2.0, exact=100), one(0.8, tpf=2.4, exact=98), one(0.5, tpf=2.9, exact=97)]
    [pair] = quality_curves.comparisons([*singles, result()])
    assert (pair.ratio, pair.ratio_as_exact) == (1.5, 3.0 / 2.4)
    edited = {**singles[1].settings, "sampling_mode": "edit"}
    [pair] = quality_curves.comparisons([singles[0], attrs.evolve(singles[1], settings=edited), result()])
    assert pair.ratio_as_exact == 1.5
    [pair] = quality_curves.comparisons([*singles, result(exact=101)])
    assert pair.ratio_as_exact is None


def test_several_blocks_are_also_compared_by_their_speed_where_it_was_measured() -> None:
    slow, fast = (Speed(median=median, lowest=1.0, highest=9.0, rounds=3) for median in (2.0, 3.0))
    [pair] = quality_curves.comparisons([one_block(speed=slow), result(speed=fast)])
    assert pair.speedup == 1.5
    [pair] = quality_curves.comparisons([one_block(), result(speed=fast)])
    assert pair.speedup is None


def test_a_speed_is_the_median_of_its_rounds_and_their_range() -> None:
    assert quality.speed_of(12, [1.0, 4.0, 2.0]) == Speed(median=6.0, lowest=3.0, highest=12.0, rounds=3)


@pytest.mark.parametrize("changes", [{"tpf": 2.9}, {"exact": 97}])
def test_a_comparison_that_is_too_slow_or_loses_too_much_is_not_met(changes: dict[str, Any]) -> None:
    [pair] = quality_curves.comparisons([one_block(), result(**changes)])
    assert not pair.met


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"task": "two_step"},
        {"strategy": "d2f"},
        {"answer_tokens": 31},
        {"settings": {"block_size": 8, "buffer_size": 4, "accept_threshold": 0.9}},
        {"settings": {"block_size": 4, "buffer_size": 4, "accept_threshold": 0.8}},
        {"settings": {"block_size": 4, "buffer_size": 1, "accept_threshold": 0.9}},
    ],
)
def test_nothing_is_compared_that_differs_in_more_than_the_buffer(changes: dict[str, Any]) -> None:
    assert quality_curves.comparisons([one_block(), result(**changes)]) == []


def test_a_point_that_two_sweeps_share_is_compared_once() -> None:
    assert len(quality_curves.comparisons([one_block(), result(), result(knob="buffer_size", value=4)])) == 1


@given(st.integers(1, 600).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_the_interval_ends_where_the_count_is_just_1_96_deviations_off(counts: tuple[int, int]) -> None:
    hits, total = counts
    for p in wilson(hits, total):
        assert (hits / total - p) ** 2 == pytest.approx(1.96**2 * p * (1 - p) / total, abs=1e-9)


def test_the_csv_has_a_line_for_each_point_and_leaves_empty_what_was_not_measured() -> None:
    speed = Speed(median=12.34, lowest=9.96, highest=13.0, rounds=3)
    edited = result(edits=Edits(made=5, helped=3, hurt=1), speed=speed, reasons={"stop_eos": 0.9, "x": 0.1})
    plain, told = csv.DictReader(io.StringIO(quality_tables.as_csv([result(), edited])))
    assert (plain["accuracy"], plain["edits"], plain["tokens_per_second"], plain["tpf_stores"]) == ("0.98", "", "", "")
    assert (told["edits"], told["edits_helped"], told["edits_hurt"]) == ("5", "3", "1")
    assert (told["tokens_per_second"], told["slowest_round"], told["fastest_round"]) == ("12.3", "10.0", "13.0")
    assert (told["stop_eos"], told["other_reasons"]) == ("0.9", "0.1")


def test_the_tables_tell_notes_curves_comparison_and_points() -> None:
    results = [one_block(), result()]
    drawn, compared = quality_curves.curves(results), quality_curves.comparisons(results)
    text = quality_tables.as_markdown(results, drawn, compared, ["Absent: tiny/x."])
    assert text.startswith("* Absent: tiny/x.\n")
    assert "Met by 1 of 1 settings." in text
    assert "| multi_bd | accept_threshold 0.9 | 98 of 100, 98.0 % | 93.0 to 99.4 % | 3.00 |" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") in {9, 14, 15} for line in lines)


def test_the_tables_say_when_nothing_can_be_compared() -> None:
    assert "Nothing that was run has both" in quality_tables.as_markdown([], [], [], [])


def test_every_model_has_sweeps_and_quick_ones_keep_the_ends_of_each() -> None:
    assert quality_sweeps.MODELS == ("llada", "llada2", "dream", "gemma")
    for sweep in quality_sweeps.SWEEPS:
        some = [trial.value for trial in quality_sweeps.trials(sweep, quick=True) if trial.task == sweep.tasks[0]]
        assert {sweep.values[0], sweep.values[-1]} <= set(some) <= set(sweep.values)


def test_a_knob_goes_where_its_sweep_says() -> None:
    for sweep in quality_sweeps.SWEEPS:
        for trial in quality_sweeps.trials(sweep):
            places = {"engine": trial.engine, "request": trial.request, "sparse": trial.request.get("sparse", {})}
            holding = [place for place, settings in places.items() if settings.get(sweep.knob) == trial.value]
            assert holding == [sweep.place]


def test_models_that_are_not_there_are_named_in_every_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "names", list)
    assert quality.main(["--out", str(tmp_path), "--models", "llada", "gemma", "--quick"]) == 0
    record = json.loads((tmp_path / "quality.json").read_text())
    assert record["absent"] == ["llada", "gemma"]
    assert record["asked"] == {
        "models": ["llada", "gemma"], "problems": 24, "seed": 1, "rounds": 0, "quick": True,
    }  # fmt: skip
    text = (tmp_path / "quality.md").read_text()
    assert "Absent: tiny/gemma" in text
    assert "Not asked for: tiny/dream" in text


def test_points_of_tiny_llada_are_run_timed_and_failures_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = {"decoding_strategy": "multi_bd", "block_size": 4, "buffer_size": 1}
    plain = quality_sweeps.Sweep(
        model="llada", tasks=("two_step",), way="one", knob="accept_threshold", values=(0.9,), engine=engine
    )
    refused = attrs.evolve(plain, way="edit", engine={**engine, "sampling_mode": "edit"})
    run = quality.Run(asked=quality.Asked(models=("llada",), problems=4, rounds=1))
    quality.run_model(run, [plain, attrs.evolve(plain, way="again"), refused], lambda line: None)
    first, again = run.results
    assert first == attrs.evolve(again, way="one")
    assert first.exact == 4
    assert first.answer_tokens == 18
    assert 0 < (first.tpf_stores or 0) < first.tpf
    assert first.speed is not None
    assert 0 < first.speed.lowest <= first.speed.median <= first.speed.highest
    assert first.speed.rounds == 1
    assert [each.split(":")[0] for each in run.failed] == ["tiny/llada, two_step, edit, accept_threshold 0.9"]
    run.write(tmp_path)
    assert "Failed: tiny/llada, two_step, edit" in (tmp_path / "quality.md").read_text()
    files = {f"quality.{kind}" for kind in ("csv", "json", "md", "png")}
    assert {path.name for path in tmp_path.iterdir()} == files | {"overview.png"}

    joined = quality.Run(asked=attrs.evolve(run.asked, models=(), rounds=0))
    joined.add(tmp_path / "quality.json")
    assert joined.results == [attrs.evolve(each, reasons=dict(each.reasons)) for each in run.results]
    assert joined.failed == run.failed
    monkeypatch.setattr(quality, "result_of", None)
    quality.run_model(joined, [plain], lambda line: None)
    assert joined.results == [attrs.evolve(first, reasons=dict(first.reasons), speed=None)], "found, not run"
    assert not any("Not asked for: tiny/llada;" in note for note in joined.notes())
    with pytest.raises(ValueError, match="'seed': 2"):
        quality.Run(asked=attrs.evolve(run.asked, seed=2)).add(tmp_path / "quality.json")
    (tmp_path / "quality.json").write_text((tmp_path / "quality.json").read_text().replace('"speed"', '"pace"'))
    with pytest.raises(ValueError, match="another version"):
        quality.Run(asked=run.asked).add(tmp_path / "quality.json")


REPORT = Path(__file__).parents[1] / "docs/quality/quality.json"
SET_BY: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("d2f", "multi_bd", "dmax"), frozenset({"block_size", "buffer_size", "accept_threshold"})),
    **dict.fromkeys(("llada_canvas", "dream_canvas"), frozenset({"gen_length"})),
    "diffusion_gemma": frozenset({"confidence_threshold", "entropy_bound", "max_denoising_steps"}),
}
"""What a point of a strategy must name, lest it change when a checkpoint recommends something else."""


def recommended_by(model: str) -> dict[str, Any]:
    folder = TinySource().resolve(f"tiny/{model}")
    assert folder is not None
    found = json.loads((folder / "generation_config.json").read_text())
    found |= {"entropy_bound": found.get("sampler_config", {}).get("entropy_bound")}
    strategy = found.setdefault("decoding_strategy", "diffusion_gemma")
    return {name: found[name] for name in ("decoding_strategy", *SET_BY[strategy])}


def test_no_point_depends_on_what_its_checkpoint_recommends() -> None:
    for sweep in quality_sweeps.SWEEPS:
        for trial in quality_sweeps.trials(sweep):
            settings = trial.settings
            assert SET_BY[settings["decoding_strategy"]] <= settings.keys()
            assert settings.get("alg") != "confidence_threshold" or "accept_threshold" in settings


def test_the_committed_report_is_of_every_sweep_and_of_the_committed_checkpoints() -> None:
    record = json.loads(REPORT.read_text())
    planned = {
        (sweep.model, trial.task, sweep.way, sweep.knob, trial.value)
        for sweep in quality_sweeps.SWEEPS
        for trial in quality_sweeps.trials(sweep)
    }
    found = {tuple(each[name] for name in ("model", "task", "way", "knob", "value")) for each in record["results"]}
    assert found == planned
    assert record["checkpoints"] == {name: quality.digest(name) for name in quality_sweeps.MODELS}
    assert {each["problems"] for each in record["results"]} == {500}
    assert all(each["speed"]["rounds"] >= 3 for each in record["results"])


@pytest.mark.parametrize("model", quality_sweeps.MODELS)
def test_what_a_checkpoint_recommends_loses_at_most_two_points_to_the_best_of_its_report(model: str) -> None:
    record = json.loads(REPORT.read_text())
    recommended = recommended_by(model)
    results = [each for each in record["results"] if each["model"] == model]
    for task in {each["task"] for each in results}:
        asked = [each for each in results if each["task"] == task]
        chosen = [each for each in asked if recommended.items() <= each["settings"].items()]
        assert chosen, f"{recommended} is not in the report"
        best = max(each["exact"] for each in asked)
        assert max(each["exact"] for each in chosen) >= best - 0.02 * 500


def test_every_pair_of_accuracy_and_tpf_that_the_reading_names_is_a_point_of_the_report() -> None:
    record = json.loads(REPORT.read_text())
    points = {
        (f"{100 * each['exact'] / each['problems']:.1f}", f"{each['tpf']:.{digits}f}")
        for each in record["results"]
        for digits in (1, 2)
    }
    named = re.findall(r"(\d+(?:\.\d)?) %, (\d+\.\d+)", (REPORT.parents[1] / "quality.md").read_text())
    assert len(named) > 60
    assert {(f"{float(accuracy):.1f}", tpf) for accuracy, tpf in named} <= points
