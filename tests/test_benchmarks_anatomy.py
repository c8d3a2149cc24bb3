"""Where the time of a step goes: modules are timed without those that they call, and every class has its part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.bench import anatomy
from benchmarks.bench.cells import canvas_cell
from benchmarks.bench.limits import weight_flops
from benchmarks.bench.networks import NETWORKS, write_network
from benchmarks.bench.steps import anatomy_section
from benchmarks.bench.work import Answer
from torch import Tensor, nn


class Clock:
    """Time that passes when somebody says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds


class Slow(nn.Module):
    """Takes its time, before and after the modules within."""

    def __init__(self, clock: Clock, seconds: float, *within: nn.Module) -> None:
        super().__init__()
        self.clock, self.seconds, self.within = clock, seconds, nn.ModuleList(within)

    def forward(self, x: Tensor) -> Tensor:
        self.clock.seconds += self.seconds / 2
        for each in self.within:
            x = each(x)
        self.clock.seconds += self.seconds / 2
        return x


class Inner(Slow):
    """Another class."""


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("broken")


def test_a_module_is_timed_without_those_that_it_calls() -> None:
    clock = Clock()
    network = Slow(clock, 2.0, Inner(clock, 5.0), Inner(clock, 3.0, Slow(clock, 1.0)))
    with anatomy.SelfTimes(clock.now) as times:
        clock.seconds += 7.0
        network(torch.zeros(1))
    assert times.seconds == {"Slow": 3.0, "Inner": 8.0}
    network(torch.zeros(1))
    assert times.seconds == {"Slow": 3.0, "Inner": 8.0}, "nothing is timed outside"


def test_times_stay_right_when_a_module_raises() -> None:
    clock = Clock()
    with anatomy.SelfTimes(clock.now) as times:
        with pytest.raises(ValueError, match="broken"):
            Slow(clock, 2.0, Broken())(torch.zeros(1))
        Inner(clock, 4.0)(torch.zeros(1))
    assert times.seconds == {"Slow": 1.0, "Broken": 0.0, "Inner": 4.0}


def test_parts_add_up_to_the_whole_and_an_unknown_class_is_not_lost() -> None:
    parts = anatomy.by_part({"Linear": 3.0, "VocabHead": 1.0, "LlamaRMSNorm": 0.5}, 5.0)
    assert parts == {"products": 4.0, "attention": 0, "norms": 0.5, "activations": 0, "between": 0, "outside": 0.5}
    with pytest.raises(KeyError, match="Slow"):
        anatomy.by_part({"Slow": 1.0}, 5.0)


def test_both_contenders_are_taken_apart(tmp_path: Path) -> None:
    cell = canvas_cell("smoke", "float32", prompt=32, output=64, steps=4)
    found = anatomy.take_apart(
        folder=str(write_network(NETWORKS["smoke"], tmp_path)),
        network="smoke",
        entries=[(each.name, each.target, each.arguments) for each in cell.entries],
        work=cell.entries[0].work,
        rounds=2,
    )
    assert [*found] == [each.name for each in cell.entries]
    for parts in found.values():
        for part in ("products", "attention", "norms", "between", "outside"):
            assert parts[part]["median"] > 0
        assert parts["products"]["low"] < parts["whole"]["low"]
    whole = {"name": cell.name, "network": "smoke", "citable": False, "contenders": found}
    text = anatomy_section({"commit": "abc", "began": "today", "cells": [whole]})
    lines = [line for line in text.splitlines() if line.startswith("| smoke")]
    assert [line.count(" | ") for line in lines] == [9, 9]
    assert "not citable" in text
    assert "times on the smoke network as fast as" in text


def test_operations_are_two_for_each_weight_and_row() -> None:
    answer = Answer(tokens=[[0]], steps=1, planned_steps=1, rows=10, head_rows=3)
    network = NETWORKS["smoke"]
    assert weight_flops(network, answer) == 20 * network.body + 6 * network.head
