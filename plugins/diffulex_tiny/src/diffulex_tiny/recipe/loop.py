"""The training loop that all recipes share: resumable, on one CPU thread, with progress lines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import attrs
import torch
from torch import Tensor, nn

from diffulex_tiny.recipe.legs import Legs, length
from diffulex_tiny.recipe.muon import Muon

OUTER = ("embed_tokens.weight", "lm_head.weight", "gate.weight", "router.proj.weight")
"""Ends of the names of matrices that are not inside the layers, or choose experts."""


class Objective(Protocol):
    """What one recipe trains; everything it does in a step depends on the step's number alone."""

    @property
    def network(self) -> nn.Module: ...

    def loss(self, step: int) -> Tensor:
        """Scalar loss of one step."""
        ...

    def after_step(self) -> None:
        """Called after each optimiser step."""
        ...

    def probe(self) -> str:
        """A line that says how well the network does on unseen problems."""
        ...


@attrs.frozen(kw_only=True)
class Schedule:
    """How long and how fast to learn; units: steps.

    Attributes:
        learning_rate: of Muon, for the matrices inside the layers.
        other_rate: of AdamW, for embeddings, routers and vectors.
        legs: rates rise again where a leg begins.
    """

    steps: int
    legs: Legs = ()
    learning_rate: float = 0.02
    other_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.05
    report_every: int = 100
    probe_every: int = 500


def train(objective: Objective, schedule: Schedule, workdir: Path) -> None:
    """Train to `schedule.steps`, resuming from `workdir/state.pt` when it is there.

    The state is written at every probe and at the end, so that an interrupted run loses little.
    """
    torch.set_num_threads(1)
    network = objective.network
    optimizers = _optimizers(network, schedule)
    full_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    workdir.mkdir(parents=True, exist_ok=True)
    state_file = workdir / "state.pt"
    start, elapsed = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file)
        network.load_state_dict(state["network"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        start, elapsed = state["step"], state["elapsed"]
        print(f"resumed at step {start}", flush=True)
    began, cpu = time.perf_counter() - elapsed, time.process_time()
    running = 0.0
    for step in range(start, schedule.steps):
        loss = objective.loss(step)
        network.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer, rates in zip(optimizers, full_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * _share(step, schedule)
            optimizer.step()
        objective.after_step()
        running += loss.item()
        done = step + 1
        if done % schedule.report_every == 0:
            spent = time.perf_counter() - began
            busy = (time.process_time() - cpu) / (done - start)
            print(
                f"step {done}/{schedule.steps}  loss {running / schedule.report_every:.4f}  {spent / 60:.1f} min, "
                f"{busy:.2f} s of processor a step",
                flush=True,
            )
            running = 0.0
        if done % schedule.probe_every == 0 or done == schedule.steps:
            state = {
                "network": network.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": done,
                "elapsed": time.perf_counter() - began,
            }
            torch.save(state, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)
            print(f"step {done}: {objective.probe()}", flush=True)


def _optimizers(network: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for everything else."""
    inner = {
        name: weight for name, weight in network.named_parameters() if weight.dim() > 1 and not name.endswith(OUTER)
    }
    others = [weight for name, weight in network.named_parameters() if name not in inner]
    return [
        Muon(inner.values(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay),
        torch.optim.AdamW(others, lr=schedule.other_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _share(step: int, schedule: Schedule) -> float:
    """Share of the learning rates: it rises in the warm-up, stays, and falls evenly in the last two fifths."""
    steps = length(step, schedule.steps, schedule.legs)
    rise = (step + 1) / schedule.warmup
    fall = (steps - step) / (0.4 * steps)
    return min(1.0, rise, max(fall, 0.01))
