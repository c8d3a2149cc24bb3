"""How many pages the cache gets, and what the largest step needs before them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch

from diffulex_core.config.load import LoadedConfig, load_config
from diffulex_core.errors import ConfigError
from diffulex_core.graphs import Rerun
from diffulex_core.host import Host
from diffulex_core.sizing import HostMemory, choose_num_pages, memory_meter, step_memory
from diffulex_core.testing.checkpoints import write_checkpoint
from diffulex_core.testing.generate import family_subject
from diffulex_core.testing.reference import plugin as reference
from diffulex_core.types import StepOutput, StepPlan
from diffulex_core.warmup import large_step
from diffulex_core.worker import Blueprint, Worker

CASE: dict[str, Any] = {
    "requested": -1, "page_bytes": 100, "wanted": 50, "least": 5, "utilization": 0.5, "available": 4000
}  # fmt: skip


def pages(**changes: Any) -> int:
    return choose_num_pages(**{**CASE, **changes})


def test_the_users_number_is_taken_as_it_is() -> None:
    assert pages(requested=3) == 3


def test_automatic_takes_what_the_share_of_memory_affords() -> None:
    assert pages() == 20
    assert pages(utilization=0.25) == 10


def test_automatic_takes_no_more_than_could_ever_be_used() -> None:
    assert pages(available=10**9) == 50


def test_too_little_memory_for_one_request_says_how_much_is_missing() -> None:
    with pytest.raises(ConfigError, match="400 bytes are missing"):
        pages(available=200)


def test_the_machine_has_memory_to_give_and_measures_no_step() -> None:
    meter = memory_meter(torch.device("cpu"))
    assert meter == HostMemory()
    assert meter.free() > 2**20
    assert meter.peak(lambda: pytest.fail("a step was run")) == 0


@pytest.mark.parametrize("rows", [7, 64, 100])
@pytest.mark.parametrize("length", [16, 200])
def test_the_largest_step_has_the_rows_asked_for_at_the_end_of_the_longest_sequence(rows: int, length: int) -> None:
    plan = large_step(rows=rows, window_rows=24, sampled_windows=2, length=length, pages=4, page_size=8, remember=False)
    assert plan.rows == rows
    window_rows = min(24, length)
    for index, window in enumerate(plan.windows):
        assert window.span.start == length - window_rows
        assert set(window.page_table.tolist()) <= set(range(4))
        assert len(window.page_table) * 8 >= window.span.end
        assert len(window.span.groups.rows) == (len(window.span.tokens) if index < 2 else 0)
    assert len({window.request_id for window in plan.windows}) == len(plan.windows)


@attrs.define
class Noting:
    """A runner that notes what it is given."""

    plans: list[StepPlan] = attrs.field(factory=list)

    def execute(self, plan: StepPlan) -> StepOutput:
        self.plans.append(plan)
        return StepOutput(decisions=(), head_rows=0)

    def close(self) -> None:
        """Nothing is held."""


@attrs.define
class Scales:
    """A device of so many free bytes, on which a step takes as many as it is told in advance, one after the other."""

    free_bytes: int = 10**9
    peaks: list[int] = attrs.field(factory=lambda: [7_000_000, 500_000])
    runs: int = 0

    def free(self) -> int:
        return self.free_bytes

    def peak(self, run: Callable[[], object]) -> int:
        run()
        self.runs += 1
        return self.peaks[self.runs - 1]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LoadedConfig]:
    """Reads the kit's family with further keys."""
    folder, host = tmp_path_factory.mktemp("kit"), Host.discover(extra=[reference], environ={})
    subject = family_subject(host.models.entry(reference.FAMILY), host)
    assert subject is not None
    write_checkpoint(subject, folder)
    usual = {"load_format": "dummy", "block_size": 4, "page_size": 8, "max_model_len": 64, "device": "cpu"}
    return lambda **options: load_config(str(folder), {**usual, **options}, host=host)


def test_the_largest_step_is_measured_and_that_of_the_largest_shape_where_steps_are_captured(
    loaded: Callable[..., LoadedConfig],
) -> None:
    config, runner = loaded(max_num_batched_tokens=4000).config, Noting()
    assert step_memory(config, Scales(), lambda pages: runner, captures=True) == 7_500_000
    assert [plan.rows for plan in runner.plans] == [4000, 1024]
    runner.plans.clear()
    assert step_memory(config, Scales(), lambda pages: runner, captures=False) == 7_000_000
    assert [plan.rows for plan in runner.plans] == [4000]


def test_no_more_requests_are_sampled_than_may_run(loaded: Callable[..., LoadedConfig]) -> None:
    runner = Noting()
    config = loaded(max_num_batched_tokens=400, max_num_reqs=3, buffer_size=2).config
    step_memory(config, Scales(), lambda pages: runner, captures=False)
    [plan] = runner.plans
    assert sum(len(window.span.groups.rows) for window in plan.windows) == 3 * 8


@pytest.mark.parametrize("options", [{"num_pages": 9}, {"skip_warmup": True}])
def test_nothing_is_measured_where_nobody_wants_it(
    loaded: Callable[..., LoadedConfig], options: dict[str, Any]
) -> None:
    meter = Scales()
    assert step_memory(loaded(**options).config, meter, lambda pages: Noting(), captures=True) == 0
    assert meter.runs == 0


def test_a_step_that_does_not_fit_says_which_keys_make_it_smaller(loaded: Callable[..., LoadedConfig]) -> None:
    def too_large(pages: int) -> Noting:
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    with pytest.raises(ConfigError, match=r"A step of 4096 rows .* does not fit.*80 GiB.*Lower max_num_batched_tokens"):
        step_memory(loaded().config, Scales(), too_large, captures=False)


def test_a_worker_leaves_room_for_the_largest_step_and_says_so(
    loaded: Callable[..., LoadedConfig], caplog: pytest.LogCaptureFixture
) -> None:
    found, meter = loaded(max_num_batched_tokens=64, max_num_reqs=4), Scales()
    blueprint = Blueprint(config=found.config, folder=found.folder, checkpoint=found.checkpoint, num_tokens=90)
    host = Host.discover(extra=[reference], environ={})
    worker = Worker(blueprint, host=host, device=torch.device("cpu"), sharers=4, graphs=Rerun(), meter=meter)
    with caplog.at_level(logging.INFO):
        assert worker.capacity().available == 10**9 // 4 - 7_500_000
        worker.allocate(5)
    worker.close()
    assert meter.runs == 2
    assert "250,000,000 bytes are free after loading, of which the largest step needs 7,500,000." in caplog.messages
    assert any(message.startswith("The KV cache has 5 pages of 8 positions, ") for message in caplog.messages)
