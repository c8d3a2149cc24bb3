"""The benchmark of GPUs without one: its arithmetic, its turns, its file of results, its page, and small cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from benchmarks.on_gpu import attention_cases, compare, layer_cases, main, page, records, steps, timing
from benchmarks.on_gpu.timing import Cost, Limits

from diffulex_core.host import Host

ROOT = Path(__file__).parents[1]
LIMITS = Limits(bandwidth=2e12, rate=5e14)


@attrs.define
class Script:
    """A timer that takes its times from a list, and a clock."""

    times: list[float] = attrs.field(factory=list)
    called: list[str] = attrs.field(factory=list)
    hour: float = 0.0
    device: torch.device = attrs.field(default=torch.device("cpu"))

    def once(self, call: Callable[[], object]) -> float:
        call()
        return self.times.pop(0)

    def now(self) -> float:
        self.hour += 1.0
        return self.hour


def test_contenders_take_turns_back_and_forth_and_warm_ups_do_not_count() -> None:
    script = Script(times=[9.0, 9.0, 1.0, 10.0, 30.0, 3.0, 2.0, 20.0])
    calls = {name: (lambda name=name: script.called.append(name)) for name in "ab"}
    assert timing.medians(script, calls, rounds=3, warm_ups=1) == {"a": 2.0, "b": 20.0}
    assert "".join(script.called) == "ba" + "ab" + "ba" + "ab"


def test_the_limits_are_bytes_both_ways_and_the_best_product() -> None:
    copies, small, large = [0.5] * 3, [0.001] * 3, [0.25] * 3
    limits = timing.measure_limits(Script(times=copies + small + large), copied=64, widths=(2, 16), rounds=1)
    assert limits == Limits(bandwidth=256.0, rate=2 * 16**3 / 0.25)


def test_work_takes_as_long_as_the_slower_of_moving_and_computing() -> None:
    assert Cost(bytes=4e12, flops=5e14).least_seconds(LIMITS) == 2.0
    assert (Cost(bytes=1e12) + Cost(bytes=1e12, flops=2e15)).least_seconds(LIMITS) == 4.0


def test_attention_moves_every_key_once_and_multiplies_what_is_seen() -> None:
    heads = attention_cases.Heads(name="t", query=4, kv=2, dim=8)
    full = attention_cases.Task(sequences=3, rows=2, keys=10)
    assert attention_cases.cost(heads, full, 2) == Cost(
        bytes=3 * (2 * 2 * 4 + 2 * 10 * 2) * 8 * 2, flops=4 * 3 * 20 * 4 * 8
    )
    blocks = attention_cases.Task(sequences=1, rows=6, keys=10, block=4)
    assert blocks.ends() == [8, 8, 8, 8, 10, 10]
    assert attention_cases.cost(heads, blocks, 2).flops == 4 * (4 * 8 + 2 * 10) * 4 * 8


def test_the_mask_of_other_kernels_shows_what_the_intervals_say() -> None:
    task = attention_cases.Task(sequences=2, rows=5, keys=9, block=4)
    mask = attention_cases.mask_of(task, torch.device("cpu"))
    assert mask is not None
    batch = attention_cases.batch_of(task, torch.tensor([[1], [0]]))
    assert mask.sum(1).tolist() == batch.key_end.tolist()[:5] == task.ends()
    found = [(run.row_start, run.row_end, run.sequence, run.key_end) for run in batch.runs]
    assert found == [(0, 4, 0, 8), (4, 5, 0, 9), (5, 9, 1, 8), (9, 10, 1, 9)]


def test_experts_are_read_once_if_anybody_chose_them() -> None:
    [shape] = layer_cases.DRAWN
    cost = layer_cases.experts_cost(shape, 5, distinct=4, item=2)
    assert cost == Cost(bytes=2 * (4 * 3 * 40 * 104 + 2 * 5 * 104), flops=2 * 5 * 3 * 3 * 40 * 104)
    assert steps.expected_experts(256, 8, 1) == pytest.approx(8)
    assert steps.expected_experts(4, 1, 2) == pytest.approx(4 * (1 - 9 / 16))
    assert steps.expected_experts(256, 8, 100_000) == pytest.approx(256)
    assert steps.expected_experts(0, 0, 5) == 0


def weights(name: str) -> steps.Weights:
    [model] = [model for model in steps.models() if model.name == name]
    return steps.weights_of(model, Host.discover())


def test_a_step_of_llada_reads_all_but_the_embedding() -> None:
    found = weights("LLaDA-8B")
    assert found.every + 2 * found.head == 8_015_581_184, "the published number of parameters, embedding included"
    assert found.head == 126_464 * 4096
    assert dict(found.kv) == {None: 32 * 2 * 32 * 128}
    cost = steps.step_cost(found, spans=[(32, 544)], head_rows=32, item=2)
    assert cost.bytes == 2 * (8_015_581_184 - 126_464 * 4096 + 262_144 * (544 + 32))
    assert cost.flops == 2 * (32 * (8_015_581_184 - 126_464 * 4096) + 32 * 544 * 2 * 32 * 32 * 128)
    assert cost.least_seconds(LIMITS) == cost.bytes / 2e12


def test_a_step_with_experts_reads_those_that_are_chosen() -> None:
    found = weights("LLaDA2-mini")
    per_expert = 19 * 3 * 512 * 2048
    assert (found.experts, found.num_experts, found.per_token) == (per_expert, 256, 8)
    assert found.every + 2 * found.head + 256 * found.experts == 16_255_638_528
    one, many = (steps.step_cost(found, spans=[(rows, rows)], head_rows=0, item=2) for rows in (1, 4096))
    kv = 20 * 2 * 4 * 128
    assert one.bytes == pytest.approx(2 * (found.every + found.head + 8 * per_expert + 2 * kv))
    assert many.bytes == pytest.approx(2 * (found.every + found.head + 256 * per_expert + 2 * 4096 * kv), rel=1e-6)


def test_a_layer_with_a_window_reads_no_more_than_that() -> None:
    found = weights("DiffusionGemma")
    assert dict(found.kv) == {1024: 25 * 2 * 8 * 256, None: 5 * 2 * 2 * 512}
    assert found.every + found.head + found.num_experts * found.experts == 25_250_986_752
    near, far = (steps.step_cost(found, spans=[(256, keys)], head_rows=0, item=2) for keys in (4096, 8192))
    assert far.bytes - near.bytes == 2 * 4096 * 5 * 2 * 2 * 512
    twice = steps.step_cost(found, spans=[(256, 4096)], head_rows=0, item=2, head_reads=2)
    assert twice.bytes - near.bytes == 2 * 262_144 * 2816


def test_each_step_is_compared_with_its_own_work() -> None:
    costs = [Cost(bytes=2e9), Cost(bytes=4e9), Cost(bytes=2e9)]
    record = steps.step_record([0.002, 0.004, 0.001], costs, [32, 64, 32], LIMITS)
    assert record["share"] == 0.5
    assert record["seconds"] == {"median": 0.002, "low": 0.001, "high": 0.004}
    assert (record["bound"], record["rows"], record["bytes"]) == ("memory", 32, 2e9)
    assert steps.step_record([1.0], [Cost(bytes=1.0, flops=1e15)], [1], LIMITS)["bound"] == "products"


def tiny() -> steps.Model:
    [model] = [model for model in steps.models() if model.name == "LLaDA-8B"]
    small = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 48, "vocab_size": 512}
    special = {"eos_token": 510, "mask_token": 511}
    ids = {"mask_token_id": 511, "eos_token_id": 510, "pad_token_id": 510, "embedding_size": 512}
    return attrs.evolve(model, config={**model.config, **small, **ids}, special=special, tokens=64)


def test_steps_of_a_small_network_are_measured_on_the_cpu() -> None:
    ticks = iter(range(1_000_000))
    with steps.Engines(device="cpu", settings={"dtype": "float32"}) as engines:
        cases = steps.cases(
            (tiny(),), LIMITS, engines=engines, now=lambda: next(ticks), batches=(1, 2), prompt=20, seconds=100.0
        )
        assert list(cases) == [f"LLaDA-8B, batch {n}, {kind}" for kind in ("graphs", "eager") for n in (1, 2)]
        one, two = (cases[f"LLaDA-8B, batch {n}, eager"]() for n in (1, 2))
    assert one["steps"] > 5
    assert two["rows"] == 2 * one["rows"] == 64
    assert one["seconds"]["median"] == 1
    assert one["ways"] == {"eager": one["steps"]}
    read = 4 * (2 * (4 * 32 * 32 + 3 * 32 * 48) + 5 * 32 + 512 * 32)
    assert read < one["bytes"] < read + 4 * 2 * 2 * 32 * (84 + 64)


def run_cases(path: Path, script: Script, *, commit: str = "c", seconds: float = 100.0) -> tuple[Any, list[str]]:
    def broken() -> records.Record:
        raise ValueError("torn")

    def good(value: int) -> Callable[[], records.Record]:
        def case() -> records.Record:
            script.called.append(str(value))
            return {"value": value}

        return case

    results = records.Results.open(path, {"commit": commit})
    said: list[str] = []
    cases = {"one": good(1), "two": broken, "three": good(3)}
    left = records.run_part(results, "kernels", cases, seconds=seconds, now=script.now, say=said.append)
    assert len(said) == 3 - len(left) or script.called
    return results, left


def test_a_run_that_was_cut_off_goes_on_where_it_ended(tmp_path: Path) -> None:
    path, script = tmp_path / "new" / "gpu.json", Script()
    _, left = run_cases(path, script, seconds=1.5)
    assert (left, script.called) == (["two", "three"], ["1"])
    results, left = run_cases(path, script)
    assert (left, script.called) == ([], ["1", "3"])
    assert results.records["kernels/two"]["error"] == "ValueError: torn"
    assert json.loads(path.read_text())["records"] == results.records
    assert [record["name"] for record in results.of("kernels")] == ["one", "two", "three"]


def test_results_of_another_commit_are_not_continued(tmp_path: Path) -> None:
    path, script = tmp_path / "gpu.json", Script()
    run_cases(path, script)
    run_cases(path, script, commit="d")
    assert script.called == ["1", "3", "1", "3"]
    assert records.Results.open(path, {"commit": "d"}, again=True).records == {}


def test_a_result_that_is_not_its_twins_is_no_measurement() -> None:
    one = torch.ones(3)
    pair = compare.Pair(ours=lambda: one + 0.1, twin=lambda: one, cost=Cost(bytes=1.0), dtype=torch.float32)
    with pytest.raises(compare.WrongResult, match=r"off by 25"):
        compare.measure(Script(), pair, LIMITS, rounds=1)


def test_differences_count_by_size_and_nothing_hides_in_nan() -> None:
    nan, infinite = torch.tensor([torch.nan]), torch.tensor([torch.inf])
    zero = torch.zeros(1)
    assert compare.off(nan, nan, torch.bfloat16) == compare.off(infinite, infinite, torch.bfloat16) == 0
    assert compare.off(nan, zero, torch.bfloat16) == compare.off(zero, nan, torch.bfloat16) == torch.inf
    assert compare.off(infinite, -infinite, torch.bfloat16) == torch.inf
    assert compare.off(torch.tensor([103.0]), torch.tensor([100.0]), torch.bfloat16) == pytest.approx(3 / 3.03)
    assert compare.off(torch.zeros(2), torch.zeros(3), torch.bfloat16) == torch.inf


def test_the_fastest_rival_is_the_one_that_counts() -> None:
    nothing = torch.zeros(1)
    pair = compare.Pair(
        ours=lambda: nothing,
        twin=lambda: nothing,
        cost=Cost(bytes=1e9),
        dtype=torch.float32,
        rivals={"slow": lambda: nothing, "fast": lambda: nothing},
    )
    script = Script(times=[0.0] * 8 + [0.001, 0.01, 0.004, 0.0008])
    record = compare.measure(script, pair, LIMITS, rounds=1)
    assert (record["rival"], record["of_rival"], record["share"]) == ("fast", 0.8, 0.5)


def test_without_a_device_nothing_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main.main(["--results", str(tmp_path / "r.json"), "--page", str(tmp_path / "p.md")]) == 2
    assert "There is no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_page_is_what_the_results_say(tmp_path: Path) -> None:
    written = tmp_path / "gpu.md"
    page.write(ROOT / "benchmarks" / "results" / "gpu.json", written)
    assert (ROOT / "docs" / "gpu.md").read_text() == written.read_text(), "run `python benchmarks/gpu.py --render`"


def test_the_page_has_a_table_for_each_part_and_names_what_failed() -> None:
    results = records.Results(path=Path("none"), about={"device": "Card"}, limits={"bandwidth": 3e12, "rate": 7e14})
    timed = {"off": 0.25, "share": 0.5, "seconds": {"ours": 2e-6, "twin": 8e-6, "flash-attn": 1e-6}}
    results.records = {
        "1": {"part": "kernels", "name": "gate", **timed},
        "2": {"part": "kernels", "name": "norm", "error": "ValueError: torn"},
        "3": {"part": "attention", "name": "full", "rival": "flash-attn", "of_rival": 0.5, **timed},
        "4": {
            "part": "steps", "name": "LLaDA", "rows": 32, "seconds": {"median": 0.004}, "bytes": 8e9, "bound": "memory",
            "share": 0.75, "ways": {"replayed": 38, "eager": 2},
        },
    }  # fmt: skip
    text = page.render(results)
    assert "- copy: 3000 GB/s read and written\n- bf16 product: 700 TFLOP/s" in text
    assert "| gate | 2.0 | 8.0 | 4.0 | 50% | 0.25 |" in text
    assert "- norm: failed, ValueError: torn" in text
    assert "| full | 2.0 | 50% | 1.0 (flash-attn) | 50% | 0.25 |" in text
    assert "| LLaDA | replayed 38, eager 2 | 32 | 4.00 | 8.00 | memory | 75% |" in text


def test_small_problems_agree_with_their_twins_in_the_interpreter() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.gpu_twins"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    shares = json.loads(found.stdout)
    assert len(shares) == len(layer_cases.KERNELS) + 2 * len(attention_cases.HEADS), "attention beside SDPA, too"
    assert all(share <= 1 for share in shares.values()), shares
    assert sum(shares.values()) > 0, "two ways to compute never agree to the last bit"
