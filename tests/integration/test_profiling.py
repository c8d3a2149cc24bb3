"""Profiles of whole engines: what is recorded, by whom, and where it is written."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from diffulex_core.cli.app import build_cli
from diffulex_core.config import ProfilerConfig
from diffulex_core.engine import Diffulex
from diffulex_core.errors import ConfigError, NoProfiler
from diffulex_core.profiling.session import ProfileSession, Recording
from diffulex_core.profiling.stages import STAGES
from diffulex_core.sampling_params import SamplingParams
from tests.integration.engines import CHECKPOINT, engine, host, prompt

PARAMS = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
TRACE_ONLY = {"formats": ["trace.json"]}


@pytest.fixture(scope="module")
def ready() -> Iterator[Diffulex]:
    with engine(profiler_keep_steps=4) as made:
        yield made


def ranges(path: Path) -> dict[str, int]:
    """How often each of our ranges is in a trace."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    names = [
        event.get("name", "") for event in json.loads(text)["traceEvents"] if event.get("cat") == "user_annotation"
    ]
    ours = [name.removeprefix("diffulex.") for name in names if name.startswith("diffulex.")]
    return {name: ours.count(name) for name in ours}


def test_the_latest_steps_are_always_kept(ready: Diffulex) -> None:
    [output] = ready.generate([prompt(9)], PARAMS)
    found = ready.recent_steps()
    assert len(found) == 4 < output.nfe
    latest = output.trajectory[-4:]
    assert [each.rows for each in found] == [record.rows for record in latest]
    assert all(each.requests == 1 and each.forward > 0 and each.update > 0 for each in found)
    assert ready.recent_steps(1) == found[-1:]


def test_without_a_configuration_a_profile_is_refused_and_the_engine_goes_on(ready: Diffulex) -> None:
    with pytest.raises(NoProfiler, match="torch_profiler_dir") as refused:
        ready.start_profile()
    assert isinstance(refused.value, RuntimeError)
    assert ready.stop_profile() == ()
    assert ready.generate([prompt(9)], PARAMS)[0].error is None


def test_a_profile_is_configured_when_it_starts(ready: Diffulex, tmp_path: Path) -> None:
    plain = ready.generate([prompt(9)], PARAMS)[0]
    ready.start_profile("mine", {"torch_profiler_dir": str(tmp_path / "new"), "record_shapes": True})
    watched = ready.generate([prompt(9)], PARAMS)[0]
    files = ready.stop_profile()
    assert watched.token_ids == plain.token_ids
    endings = ("trace.json", "summary.txt", "summary.csv", "summary.json", "stages.csv")
    assert [file.name for file in files] == [f"mine.engine.{ending}" for ending in endings]
    counts = ranges(files[0])
    assert counts["forward"] == counts["pack"] == counts["schedule"] == counts["update"] == watched.nfe
    operations = json.loads(files[3].read_text())
    assert any(each["name"] == "aten::mm" or "linear" in each["name"] for each in operations)
    with files[4].open(newline="") as file:
        assert len(list(csv.DictReader(file))) == min(4, watched.nfe), "as many as the ring holds"
    assert ready.stop_profile() == (), "nothing was recorded since"


def test_a_recording_ends_by_itself_and_repeats(ready: Diffulex, tmp_path: Path) -> None:
    settings = {"schedule": {"wait": 1, "warmup": 1, "active": 2, "repeat": 2}}
    ready.start_profile("r", {"torch_profiler_dir": str(tmp_path), **settings, **TRACE_ONLY})
    output = ready.generate([prompt(9)], SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True))[0]
    assert output.nfe > 8
    files = ready.stop_profile()
    assert [file.name for file in files] == ["r.engine.trace.json", "r.engine.2.trace.json"]
    for file in files:
        assert ranges(file)["forward"] == 2


def test_a_session_is_over_with_its_last_step(tmp_path: Path) -> None:
    config = ProfilerConfig(profiler="torch", torch_profiler_dir=str(tmp_path), formats=(), max_iterations=2, repeat=2)
    session = ProfileSession(Recording(config=config, name="s"), "engine")
    assert [session.step() for _ in range(5)] == [True, True, True, False, False]
    assert session.stop() == ()


def test_what_a_profile_cannot_be_is_said_before_it_starts(ready: Diffulex, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        ready.start_profile(
            config={"torch_profiler_dir": str(tmp_path), "schedule": {"skip_first": 1}, "max_iterations": -1}
        )
    assert len(refused.value.problems) == 2
    assert "no key 'schedule.skip_first'" in str(refused.value)
    assert "schedule.wait, " in str(refused.value)
    assert "profiler_config.max_iterations is -1" in str(refused.value)
    with pytest.raises(ConfigError, match="torch_profiler_dir"):
        ready.start_profile(config={"profiler": "torch"})
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Name a directory"):
        ready.start_profile(config=ProfilerConfig(profiler="torch", torch_profiler_dir=str(tmp_path / "file")))
    assert ready.stop_profile() == ()


def test_what_cannot_be_written_leaves_a_note(ready: Diffulex, tmp_path: Path) -> None:
    (tmp_path / "n.engine.summary.txt").mkdir()
    ready.start_profile("n", {"torch_profiler_dir": str(tmp_path), "formats": ["summary"]})
    ready.generate([prompt(9)], PARAMS)
    [note] = ready.stop_profile()
    assert note.name == "n.engine.error.txt"
    assert note.read_text().strip()


def test_every_process_of_an_engine_is_recorded(tmp_path: Path) -> None:
    profiler = {"profiler": "torch", "torch_profiler_dir": str(tmp_path), "formats": ["trace.json.gz"], "run_id": "w"}
    with engine(profiler_config=profiler, device="cpu", data_parallel_size=2) as made:
        made.start_profile()
        outputs = made.generate([prompt(9), prompt(9, salt=1)], SamplingParams(temperature=0.0, max_tokens=4))
        files = made.stop_profile()
        assert all(step.forward > 0 for step in made.recent_steps())
    components = ["engine", *(f"model_runner.rank{rank}" for rank in range(2))]
    assert [file.name for file in files] == [f"w.{component}.trace.json.gz" for component in components]
    forwards = [ranges(file).get("forward", 0) for file in files]
    assert forwards[0] == 0
    assert all(forwards[1:])
    assert sum(forwards) >= max(output.nfe for output in outputs)


def test_a_profile_that_runs_is_written_when_the_engine_closes(tmp_path: Path) -> None:
    with engine(profiler="torch", torch_profiler_dir=str(tmp_path), profiler_formats=["trace.json"]) as made:
        made.start_profile("end")
        made.generate([prompt(9)], PARAMS)
    assert ranges(tmp_path / "end.engine.trace.json")["forward"] > 0


def run(*arguments: str) -> Result:
    usual = ["--model", str(CHECKPOINT), "--set", "max_model_len=128", "--set", "block_size=8", "--ignore-eos"]
    return CliRunner().invoke(build_cli(host()), ["profile", *usual, "--temperature", "0", *arguments])


def test_the_command_prints_and_writes_a_table_and_a_trace(tmp_path: Path) -> None:
    result = run("--max-tokens", "12", "--output", str(tmp_path), "hello", "world")
    assert result.exit_code == 0, result.output
    written = (tmp_path / "profile.stages.txt").read_text()
    for stage in (*STAGES, "step"):
        assert f" {stage} " in result.output
        assert f" {stage} " in written
    assert "2 requests" in result.output
    facts = json.loads((tmp_path / "profile.stages.json").read_text())
    assert (
        facts["timed"]["steps"] == facts["recorded"]["steps"] == ranges(tmp_path / "profile.engine.trace.json")["pack"]
    )


def test_the_command_stops_early_where_it_is_told_to(tmp_path: Path) -> None:
    result = run("--max-tokens", "40", "--forwards", "2", "--no-warm-up", "--json", "-o", str(tmp_path), "hello")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["timed"]["steps"] == facts["recorded"]["steps"] == 2
    assert all(Path(file).is_file() for file in facts["files"])


def test_a_prompt_that_cannot_be_served_is_an_error_of_the_command(tmp_path: Path) -> None:
    result = run("--max-tokens", "12", "-o", str(tmp_path), "hello", "x" * 500)
    assert result.exit_code != 0
    assert "max_model_len" in str(result.exception)
