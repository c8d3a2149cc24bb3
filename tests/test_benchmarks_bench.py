"""The benchmark's own machinery: turns, medians, the idle check, equal tokens, the authors' loop, and the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from benchmarks.bench import cells, machine, networks, picture, render, session, targets
from benchmarks.bench.authors import bidirectional, denoise, shares
from benchmarks.bench.child import Child, ChildFailed, Measured, call_in_child
from benchmarks.bench.limits import fraction, spent
from benchmarks.bench.llamacpp import LlamaCpp, watch
from benchmarks.bench.memory import forget_peak, peak_rss
from benchmarks.bench.results import Contended, Outcome, Report
from benchmarks.bench.turns import DifferentTokens, Spread, agreement, check_same, ratios, take_turns
from benchmarks.bench.work import Answer, Work
from hypothesis import given, strategies as st
from safetensors.torch import load_file

from diffulex_llada.oracle import hf_reference

PARITY = Path(__file__).parent / "parity"
WORK = Work(prompt=4, output=8, batch=1, steps=8)
MASK = 99
CORES = sorted(os.sched_getaffinity(0))[:1]


@attrs.define
class Clock:
    """Time that passes only when somebody runs."""

    time: float = 0.0

    def __call__(self) -> float:
        return self.time


@attrs.define
class Turn:
    """A contender that notes when it ran and takes a second."""

    name: str
    log: list[str]
    clock: Clock

    def run(self) -> str:
        self.log.append(self.name)
        self.clock.time += 1
        return f"{self.name}{len(self.log)}"


def turns(rounds: int, *, warmups: int = 0, seconds: float = 100.0) -> tuple[list[str], dict[str, list[str]]]:
    log, clock = list[str](), Clock()
    contenders = [Turn(name, log, clock) for name in "abc"]
    return log, dict(take_turns(contenders, rounds=rounds, warmups=warmups, seconds=seconds, now=clock))


def test_contenders_take_turns_and_every_other_round_goes_backwards() -> None:
    log, kept = turns(3)
    assert "".join(log) == "abccbaabc"
    assert kept == {"a": ["a1", "a6", "a7"], "b": ["b2", "b5", "b8"], "c": ["c3", "c4", "c9"]}


def test_warm_up_rounds_are_run_and_not_kept() -> None:
    log, kept = turns(1, warmups=2)
    assert len(log) == 9
    assert kept == {"a": ["a7"], "b": ["b8"], "c": ["c9"]}


def test_no_round_begins_after_the_time_is_up_but_one_is_always_run() -> None:
    assert len(turns(9, seconds=5)[0]) == 6
    assert len(turns(9, seconds=0)[0]) == 3


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=9))
def test_a_spread_is_the_middle_the_lowest_and_the_highest(values: list[float]) -> None:
    spread, ordered = Spread.of(values), sorted(values)
    assert (spread.low, spread.high) == (ordered[0], ordered[-1])
    assert sum(each <= spread.median for each in values) >= len(values) / 2
    assert sum(each >= spread.median for each in values) >= len(values) / 2


def test_ratios_are_taken_round_by_round() -> None:
    # The second round was slow for both, which a ratio of medians would not know.
    assert ratios([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == Spread(median=3.0, low=2.0, high=4.0)


@given(
    st.floats(1, 100), st.integers(1, 64), st.floats(0, 1), st.floats(0, 1),
)  # fmt: skip
def test_what_others_took_is_what_was_given_less_what_we_got(
    seconds: float, cores: int, own: float, others: float
) -> None:
    capacity = seconds * cores
    ours, theirs = own * capacity / 2, others * capacity / 2
    before = machine.Clock(wall=5.0, everybody=70.0, own=3.0)
    after = machine.Clock(wall=5.0 + seconds, everybody=70.0 + ours + theirs, own=3.0 + ours)
    assert before.others_until(after, cores) == pytest.approx(others / 2, abs=1e-6)


def test_a_busy_machine_is_refused_or_marked() -> None:
    assert machine.check_idle(0.01, busy_ok=False)
    assert not machine.check_idle(0.5, busy_ok=True)
    with pytest.raises(machine.BusyMachine, match=r"50%.*--busy-ok"):
        machine.check_idle(0.5, busy_ok=False)


def test_what_a_busy_machine_spoiled_is_measured_again() -> None:
    log = list[str]()

    def spoiled(times: int) -> str:
        log.append("run")
        if log.count("run") <= times:
            raise machine.BusyMachine("busy.")
        return "measured"

    def patiently(times: int) -> str:
        log.clear()
        return machine.patiently(lambda: spoiled(times), tries=3, wait=lambda: log.append("wait"), tell=log.append)

    assert patiently(2) == "measured"
    assert log == ["run", "busy. Trying again when it is idle.", "wait"] * 2 + ["run"]
    with pytest.raises(machine.BusyMachine):
        patiently(3)


def test_the_wait_for_an_idle_machine_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.time += seconds

    def read_clock(now: Clock) -> machine.Clock:
        # Others take everything until a hundred seconds have gone.
        return machine.Clock(wall=now(), everybody=64 * min(now(), 100.0), own=0.0)

    monkeypatch.setattr(machine, "read_clock", read_clock)
    assert not machine.wait_until_idle(seconds=60, now=clock, sleep=sleep)
    assert machine.wait_until_idle(seconds=60, now=clock, sleep=sleep)
    assert 100 < clock.time < 110


def test_processes_that_have_ended_are_our_own() -> None:
    before = machine.read_clock(time.perf_counter)
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    subprocess.run((sys.executable, "-c", burn), check=True)
    assert machine.read_clock(time.perf_counter).own - before.own >= 0.35  # clocks of ended processes tick


def test_the_machine_says_what_it_is() -> None:
    told = machine.describe(threads=2)
    assert told["threads"] == 2
    assert told["torch"] == torch.__version__
    assert json.loads(json.dumps(told)) == told


def test_a_contender_with_other_tokens_is_caught_and_named() -> None:
    check_same({"ours": [[1, 2], [3]], "theirs": [[1, 2], [3]]})
    with pytest.raises(DifferentTokens, match=r"ours and theirs agree at 66\.67%"):
        check_same({"ours": [[1, 2], [3]], "theirs": [[1, 2], [4]]})
    with pytest.raises(DifferentTokens, match=r"theirs gave \[2\]"):
        agreement({"ours": [[1, 2, 3]], "theirs": [[1, 2]]})


def measured(*tokens: int, wall: float = 1.0) -> Measured:
    answer = Answer(tokens=[list(tokens)], steps=8, planned_steps=8, rows=96, head_rows=36)
    return Measured(answer=answer, wall=wall, cpu=2 * wall, peak_rss=2**20)


def cell(tokens: cells.Tokens) -> cells.Cell:
    work = attrs.evolve(WORK, output=3)
    entries = (cells.entry(cells.AUTHORS, "float32", work), cells.entry(cells.CANVAS, "float32", work))
    return cells.Cell(name="cell", section="canvas", network="smoke", entries=entries, tokens=tokens)


def test_a_cell_wants_the_tokens_that_its_contenders_must_agree_on() -> None:
    same = {cells.AUTHORS: [measured(1, 2, 3)], cells.CANVAS: [measured(1, 2, 3)]}
    other = {cells.AUTHORS: [measured(1, 2, 3)], cells.CANVAS: [measured(1, 2, 4)]}
    fewer = {cells.AUTHORS: [measured(1, 2, 3)], cells.CANVAS: [measured(1, 2)]}
    assert session.compare(cell("equal"), same) == 1.0
    assert session.compare(cell("compared"), other) == pytest.approx(2 / 3)
    assert session.compare(cell("counted"), other) is None
    for wanted, kept in (("equal", other), ("compared", fewer), ("counted", fewer)):
        with pytest.raises(DifferentTokens):
            session.compare(cell(wanted), kept)


def test_a_contender_must_give_the_same_tokens_in_every_round() -> None:
    kept = {cells.AUTHORS: [measured(1, 2, 3), measured(1, 2, 4)], cells.CANVAS: [measured(1, 2, 3)] * 2}
    with pytest.raises(DifferentTokens, match="round 2"):
        session.compare(cell("counted"), kept)


@pytest.fixture
def children() -> Iterator[list[Child]]:
    made: list[Child] = []
    yield made
    for child in made:
        child.close()


def echo(children: list[Child], **keywords: Any) -> Child:
    children.append(Child("echo", "tests.benchmark_echo:Echo", keywords, threads=1, cores=CORES))
    return children[-1]


def test_a_child_is_kept_alive_and_runs_whenever_it_is_asked(children: list[Child]) -> None:
    child = echo(children)
    child.prepare(WORK, [[1, 2], [3]])
    runs = [child.run() for _ in range(3)]
    assert [run.answer.tokens for run in runs] == [[[1, 2], [3]]] * 3
    assert [run.answer.steps for run in runs] == [1, 2, 3]
    assert all(run.wall > 0 and run.peak_rss > 2**20 for run in runs)
    child.prepare(WORK, [[4]])
    assert child.run().answer.tokens == [[4]]


def test_what_a_contender_raises_reaches_the_parent_and_it_can_go_on(children: list[Child]) -> None:
    child = echo(children, fails_on=3)
    with pytest.raises(ChildFailed, match="ValueError: three prompts"):
        child.prepare(WORK, [[1], [2], [3]])
    child.prepare(WORK, [[1]])
    assert child.run().answer.tokens == [[1]]


def test_a_contender_that_dies_is_named(children: list[Child]) -> None:
    child = echo(children, dies=True)
    child.prepare(WORK, [[1]])
    with pytest.raises(ChildFailed, match="echo died in 'run'"):
        child.run()


def test_a_process_has_a_peak_of_its_own(children: list[Child]) -> None:
    hoard = bytearray(200 * 2**20)  # of the parent, which Linux's own figure would hand on
    child = echo(children)
    child.prepare(WORK, [[1]])
    assert 2**20 < child.run().peak_rss < 150 * 2**20 < len(hoard)


def test_a_peak_is_seen_and_forgotten() -> None:
    hoard = bytearray(100 * 2**20)
    high = peak_rss()
    del hoard
    forget_peak()
    assert 0 < peak_rss() < high - 50 * 2**20
    code, printed, noted, peak = watch(
        (
            sys.executable,
            "-c",
            "import time; x = bytearray(80 * 2**20); print('out'); time.sleep(0.3); raise SystemExit(3)",
        )
    )
    assert (code, printed, noted) == (3, "out\n", "")
    assert 80 * 2**20 < peak < 150 * 2**20


def test_a_child_is_pinned_and_told_how_many_threads_it_has() -> None:
    before = dict(os.environ)
    told = call_in_child("tests.benchmark_echo:surroundings", threads=1, cores=CORES)
    assert told == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "cores": CORES}
    assert dict(os.environ) == before


@given(st.integers(1, 64), st.integers(1, 64))
def test_each_step_of_a_block_has_an_even_share_of_it(masks: int, steps: int) -> None:
    counts = shares(masks, steps)
    assert (sum(counts), len(counts)) == (masks, steps)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1


class Scripted(torch.nn.Module):
    """Prefers token `position % 7`, the surer the later the position, and counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, *, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        self.seen.append(x.clone())
        positions = torch.arange(x.shape[1])
        logits = torch.zeros(*x.shape, MASK + 1)
        logits[:, positions, positions % 7] = 1 + positions / 4
        return SimpleNamespace(logits=logits)


def test_the_loop_decides_block_by_block_the_surest_positions_first() -> None:
    model = Scripted()
    found = denoise(model, torch.zeros(1, 3, dtype=torch.long), output=8, steps=4, block_length=4, mask=MASK)
    masked = [(x[0] == MASK).nonzero()[:, 0].tolist() for x in model.seen]
    assert masked == [[3, 4, 5, 6, 7, 8, 9, 10], [3, 4, 7, 8, 9, 10], [7, 8, 9, 10], [7, 8]]
    assert found.steps == 4
    assert found.tokens[0].tolist() == [0, 0, 0, 3, 4, 5, 6, 0, 1, 2, 3]
    assert found.first_block is not None


def test_the_loop_stops_after_as_many_steps_as_are_sampled() -> None:
    found = denoise(
        Scripted(), torch.zeros(2, 3, dtype=torch.long), output=8, steps=8, block_length=4, mask=MASK, most_steps=3
    )
    assert found.steps == 3
    assert (found.tokens == MASK).sum(dim=1).tolist() == [5, 5]
    assert found.first_block is None


def test_by_a_threshold_the_loop_decides_all_that_reach_it_and_at_least_one() -> None:
    model = Scripted()
    denoise(model, torch.zeros(1, 3, dtype=torch.long), output=8, steps=8, block_length=8, mask=MASK, threshold=0.1)
    # exp(1 + p / 4) / (exp(1 + p / 4) + 99) reaches 0.1 from position 6 on.
    assert [int((x == MASK).sum()) for x in model.seen] == [8, 3, 2, 1]


def test_the_loop_gives_the_tokens_that_the_authors_sampler_gave() -> None:
    folder = PARITY / "checkpoints" / "llada"
    config = json.loads((folder / "config.json").read_text())
    model = hf_reference(config, load_file(folder / "model.safetensors"))
    model.set_attn_implementation("sdpa")
    bidirectional(model)
    recorded = json.loads((PARITY / "vectors" / "llada-canvas.json").read_text())["cases"]
    cases = [case for case in recorded if case["cfg_scale"] == 0 and case["remasking"] == "low_confidence"]
    assert len(cases) >= 3
    for case in cases:
        found = denoise(
            model,
            torch.tensor([case["prompt"]]),
            output=case["gen_length"],
            steps=case["steps"],
            block_length=case["block_length"],
            mask=config["mask_token_id"],
        )
        assert found.tokens[0, len(case["prompt"]) :].tolist() == case["tokens"]


def test_cells_have_names_of_their_own_and_are_chosen_by_parts_of_them() -> None:
    found = [*cells.default_cells()]
    names = [each.name for each in found]
    assert len(set(names)) == len(names)
    assert {each.section for each in found} <= set(cells.SECTIONS)
    assert cells.choose(found, []) == found
    chosen = cells.choose(found, ["canvas-35M", "dtype"])
    assert [each.name for each in chosen] == [name for name in names if "canvas-35M" in name or "dtype" in name]
    with pytest.raises(ValueError, match="canvas-9B"):
        cells.choose(found, ["canvas-9B"])


def test_contenders_of_a_cell_do_the_same_number_of_steps_for_the_same_tokens() -> None:
    for each in (*cells.default_cells(), *cells.smoke_cells()):
        if each.section in ("canvas", "blocks", "threshold"):
            [work] = {attrs.evolve(entry.work, sampled_steps=None) for entry in each.entries}
            assert work.steps % (work.output // work.block_length) == 0
            # A prompt that ends inside a block costs blocks more steps than there are tokens.
            assert work.prompt % work.block_length == work.output % work.block_length == 0
        assert all(entry.work.sampled_steps is None for entry in cells.unsampled(each).entries)


def test_a_network_has_the_weights_that_its_numbers_say(tmp_path: Path) -> None:
    network = networks.NETWORKS["smoke"]
    folder = networks.write_network(network, tmp_path)
    weights = load_file(folder / "model.safetensors")
    assert sum(each.numel() for each in weights.values()) == network.parameters
    assert networks.write_network(network, tmp_path) == folder
    assert not weights["model.transformer.ff_out.weight"][-networks.SPECIAL :].any()
    assert 34e6 < networks.NETWORKS["35M"].parameters < 37e6
    assert 145e6 < networks.NETWORKS["150M"].parameters < 155e6


def test_prompts_are_the_same_every_time_and_hold_nothing_special() -> None:
    network = networks.NETWORKS["smoke"]
    first = networks.prompts(network, length=40, count=8)
    assert first == networks.prompts(network, length=40, count=8)
    assert first[:2] == networks.prompts(network, length=40, count=2)
    assert max(map(max, first)) < network.vocab - networks.SPECIAL


def test_the_limit_is_what_takes_longer_arithmetic_or_reading() -> None:
    network = networks.NETWORKS["smoke"]
    answer = Answer(tokens=[[0] * 8], steps=2, planned_steps=2, rows=24, head_rows=10)
    found = spent(network, answer, WORK, "float32")
    attention = 4 * 24 * 12 * network.hidden * network.layers
    assert found.flops == 2 * (24 * network.body + 10 * network.head) + attention
    assert found.bytes == 2 * 4 * (network.body + network.head)
    limits = {"gemm": {"float32": {"best": found.flops}}, "read": found.bytes / 3}
    assert fraction(found, 6.0, limits, "float32") == pytest.approx(0.5)
    assert fraction(found, 2.0, {**limits, "read": 1e18}, "float32") == pytest.approx(0.5)


def contended(name: str, *wall: float, **changes: Any) -> Contended:
    plain: dict[str, Any] = {
        "name": name, "dtype": "float32", "work": WORK, "wall": [*wall], "cpu": [2 * each for each in wall],
        "tokens": 8, "steps": 8, "planned_steps": 8, "rows": 96, "head_rows": 36, "first_block": [], "outside": [],
        "peak_rss": 3 * 2**20, "fraction": None,
    }  # fmt: skip
    return Contended(**{**plain, **changes})


def outcome(**changes: Any) -> Outcome:
    plain: dict[str, Any] = {
        "name": "canvas-smoke", "section": "canvas", "network": "smoke", "others": 0.01, "citable": True,
        "contenders": [contended("slow", 2.0, 3.0, 4.0), contended("fast", 1.0, 1.0, 1.0)], "agreement": 1.0,
    }  # fmt: skip
    return Outcome(**{**plain, **changes})


def report(*outcomes: Outcome, **changes: Any) -> Report:
    told = {"cpu": "a cpu", "family": "1", "instructions": ["avx2"], "cores": 2, "threads": 2, "memory_gib": 8.0}
    told |= {"system": "Linux x86_64", "python": "3.12", "torch": "2.13", "transformers": "5.0", "numpy": "2"}
    plain: dict[str, Any] = {
        "commit": "abc", "began": "2026-01-01T00:00:00+00:00", "machine": told, "limits": {}, "imports": {},
        "trained": [], "gemma": [], "outcomes": [*outcomes],
    }  # fmt: skip
    return Report(**{**plain, **changes})


def test_a_target_is_reached_by_the_median_of_its_own_cells() -> None:
    plain = contended("loop", 6.0, 6.0, 6.0)
    work = attrs.evolve(WORK, prompt=64, output=256)
    quick = contended("blocks", 1.0, 1.2, 2.0, work=work)
    cell = outcome(name="blocks-35M", section="blocks", network="35M", contenders=[plain, quick])
    (found,) = targets.verdicts(report(cell), None)
    assert (found.where, found.wanted, found.found.median, found.reached) == ("blocks-35M", 5, 5.0, True)
    slow = attrs.evolve(cell, contenders=[plain, contended("blocks", 1.0, 1.3, 2.0, work=work)])
    assert not next(targets.verdicts(report(slow), None)).reached
    others = [attrs.evolve(cell, section="canvas"), attrs.evolve(cell, network="smoke"), outcome()]
    assert [each.wanted for each in targets.verdicts(report(*others), None)] == [1.25]


def test_targets_of_times_are_reached_from_below() -> None:
    imports = {"import diffulex_core": {"median": 0.2, "low": 0.1, "high": 0.4, "torch": False}}
    told = {"median": 1600, "low": 1000, "high": 2000}
    wall = dict.fromkeys(("critical", "schedule", "pack", "update", "leisure"), told)
    filling, other = (
        {"label": kind, "shape": {"kind": kind}, "this": {"wall": wall}} for kind in ("filling", "editing")
    )
    shapes = [other, filling]
    host = {"commit": "abc", "began": "today", "requests": 64, "rounds": 5, "steps": 40, "shapes": shapes}
    start, step = targets.verdicts(report(imports=imports), host)
    assert (start.reached, step.reached) == (True, False)
    assert step.found == Spread(median=1.6, low=1.0, high=2.0)
    text = render.page(report(imports=imports), results="cpu.json", picture=None, host=host)
    assert "masks | `64 requests, filling` | <= 1.5 ms | 1.60 (1.00 to 2.00) ms | **missed** |" in text
    assert "| editing | 1.60 (1.00 to 2.00) | 1.60 | 1.60 | 1.60 | 1.60 |" in text


TOOL = """#!{python}
import pathlib, sys
log = pathlib.Path(__file__).with_suffix(".runs")
runs = int(log.read_text()) if log.exists() else 0
log.write_text(str(runs + 1))
if runs >= {cut_off}:
    sys.stderr.write("total time: 12.00ms, time per step: 3.00ms, sampling time per step: 1.00ms\\n")
    sys.stderr.write("<|5|><|6|>\\n")
"""


def test_a_run_of_llama_cpp_whose_last_lines_were_lost_is_made_again(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text(TOOL.format(python=sys.executable, cut_off=2))
    tool.chmod(0o755)
    (tmp_path / "model-f32.gguf").touch()
    contender = LlamaCpp(folder=str(tmp_path), config={"mask_token_id": 9}, dtype="float32", cli=str(tool))
    contender.prepare(Work(prompt=1, output=2, batch=1, steps=4), [[3]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        found = contender.run()
    assert (found.tokens, found.seconds) == ([[5, 6]], 0.012)
    assert found.peak_rss is not None
    assert tool.with_suffix(".runs").read_text() == "3"


def test_speed_and_ratios_count_steps_that_were_not_run() -> None:
    sampled = contended("slow", 1.0, steps=2)
    assert sampled.per_token == [0.5]
    found = outcome(contenders=[sampled, contended("fast", 1.0)])
    assert found.faster(found.contenders[1]).median == 4.0
    assert found.faster(found.contenders[1], by_cpu=True).median == 4.0


def test_results_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    whole = report(outcome(), outcome(name="other", agreement=None))
    path = tmp_path / "results.json"
    path.write_text(whole.to_json())
    assert Report.read(path) == whole
    path.write_text("{}")
    with pytest.raises(ValueError, match="no results of this benchmark"):
        Report.read(path)


def test_the_page_shows_medians_with_their_spread() -> None:
    text = render.page(report(outcome()), results="cpu.json", picture=None)
    assert "3.00 (2.00 to 4.00)" in text
    assert "2.7 (2.0 to 4.0)" in text
    assert "8.0 (8.0 to 8.0)" in text
    assert "Tokens are equal, one by one, in 1 of these 1 cells." in text
    assert "Nothing else ran on the machine." in text


def test_the_page_has_nothing_of_what_was_not_measured() -> None:
    text = render.page(report(outcome()), results="cpu.json", picture=None)
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["## The same algorithm: a whole canvas in every step", "## Measuring it again"]
    assert "![" not in text


def test_a_page_of_a_busy_machine_says_so() -> None:
    text = render.page(report(outcome(others=0.4, citable=False)), results="cpu.json", picture=None)
    assert "not citable" in text
    assert "others took 40% of the machine" in text
    assert "Nothing else ran" not in text


def test_the_page_names_what_could_not_be_measured() -> None:
    whole = report(outcome(), failures={"blocks-35M": "ChildFailed: it failed:\nTraceback\nValueError: no"})
    text = render.page(whole, results="cpu.json", picture=None)
    assert "## Not measured" in text
    assert "* `blocks-35M`: ChildFailed: it failed: ... ValueError: no" in text


def test_every_line_of_a_table_has_a_cell_for_each_column() -> None:
    limits = {
        "gemm": {"float32": {"best": 2e11, "8 x 8, plain": 2e11}, "bfloat16": {"best": 4e11, "8 x 8, blocked": 4e11}},
        "read": 2e10, "copy": 1e10,
    }  # fmt: skip
    imports = {"import x": {"median": 0.1, "low": 0.1, "high": 0.2, "torch": False}}
    spread = {"median": 1.0, "low": 0.5, "high": 2.0}
    trained = [
        {"model": "tiny/x", "name": "way", "problems": 4, "right": 3, "tokens": 60, "forwards": 30, "rows": 600,
         "head_rows": 60, "tokens_per_second": spread, "faster": spread, "citable": True, "commit": "abc"}
    ]  # fmt: skip
    text = render.page(
        report(outcome(), limits=limits, imports=imports, trained=trained), results="cpu.json", picture="p.png"
    )
    tables = [block for block in text.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 4
    for table in tables:
        assert len({line.count(" | ") for line in table.splitlines() if "---" not in line}) == 1
    assert "At commit `abc`." in text
    assert "![Tokens per second of each cell](p.png)" in text


def test_the_picture_has_a_bar_for_each_contender_that_is_compared(tmp_path: Path) -> None:
    target = tmp_path / "picture.png"
    assert picture.draw(report(outcome()), target)
    assert target.read_bytes().startswith(b"\x89PNG")
    alone = outcome(contenders=[contended("slow", 1.0)])
    assert not picture.draw(report(alone), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
