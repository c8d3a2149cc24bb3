"""The moments of decoding that training shows: running blocks, masks, wrong tokens, noisy canvases."""

from __future__ import annotations

import math
from pathlib import Path

import attrs
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from diffulex_core.pattern import Extent, Phase
from diffulex_gemma.denoising import within_bound
from diffulex_gemma.pattern import CausalCanvas
from diffulex_tiny import problems
from diffulex_tiny.recipe import canvases, window
from diffulex_tiny.recipe.canvases import Noise
from diffulex_tiny.recipe.loop import Schedule, train
from diffulex_tiny.recipe.muon import orthogonal
from diffulex_tiny.recipe.stream import Batch, Mix, Stream
from diffulex_tiny.recipe.tokenizer import MASK, build_tokenizer, token_id

TOKENIZER = build_tokenizer()
MASK_ID = token_id(TOKENIZER, MASK)
NUMBERS = torch.zeros(TOKENIZER.get_vocab_size(), dtype=torch.bool)
NUMBERS[[token_id(TOKENIZER, f"Ġ{n}") for n in range(91)]] = True
MIX = Mix(steps=100, rows=8, long_rows=6)
NOISE = Noise(vocab_size=len(NUMBERS), mask_id=MASK_ID, masks=0.0)


def told(task: problems.Task, count: int = 12, unit: int = 1) -> Batch:
    return Stream(MIX, TOKENIZER).of(list(problems.problems(3, "train", count, task)), [unit] * count)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), block_size=st.sampled_from([4, 8, 16, 32]))
def test_running_blocks_are_neighbours_and_everything_behind_them_is_masked(seed: int, block_size: int) -> None:
    batch = told("long", unit=block_size)
    moment = window.draw_moment(batch.layout, block_size, generator(seed))
    assert not (moment.running & ~batch.layout.fillable).any()
    for running, hidden, prompt, total in zip(
        moment.running, moment.hidden, batch.layout.prompt, batch.layout.total, strict=True
    ):
        positions = running.nonzero().squeeze(1)
        first, last = int(positions[0]), int(positions[-1])
        assert len(positions) == last - first + 1
        assert first == prompt or first % block_size == 0
        assert last == total - 1 or last % block_size == block_size - 1
        assert last // block_size - first // block_size < max(1, window.FARTHEST // block_size)
        assert not hidden[:first].any()
        assert hidden[last + 1 : int(total)].all()
        assert not hidden[int(total) :].any()


def test_wrong_tokens_are_decided_ones_of_some_rows_and_numbers_are_mostly_taken_for_numbers() -> None:
    batch = told("long", count=200)
    moment = window.draw_moment(batch.layout, 32, generator())
    wrong, other = window.draw_wrong(batch.ids, moment, NUMBERS, generator())
    assert not (wrong & (moment.hidden | ~moment.running)).any()
    assert 0.2 < float(wrong.any(dim=1).float().mean()) < 0.6
    numbers = wrong & NUMBERS[batch.ids]
    assert float(NUMBERS[other[numbers]].float().mean()) > 0.7


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), task=st.sampled_from(["two_step", "long"]))
def test_canvases_see_what_the_engine_lets_them_see(seed: int, task: problems.Task) -> None:
    batch = told(task, count=4)
    drawn = canvases.draw(batch, 2, 16, generator(seed))
    encoded = drawn.encoded.shape[1]
    for row in range(4):
        for index in range(2):
            own = encoded + (drawn.canvas == index).nonzero().squeeze(1)
            positions = drawn.positions[row, own]
            start = int(positions[0])
            assert (start - int(batch.layout.prompt[row])) % 16 == 0
            assert start < int(batch.layout.total[row])
            assert positions.tolist() == list(range(start, start + 16))
            extent = Extent(prompt_len=start, phase=Phase.DECODE, final_end=start, end=start + 16)
            pattern = CausalCanvas(block_size=16)
            for at, sees in [
                *((at, drawn.visible[row, at]) for at in range(start)),
                *zip(positions.tolist(), drawn.visible[row, own], strict=True),
            ]:
                end = int(pattern.key_end(torch.tensor([at]).numpy(), extent)[0])
                assert sees[:encoded].tolist() == [key < min(end, start) for key in range(encoded)]
                if at >= start:
                    assert sees[encoded:].tolist() == (drawn.canvas == index).tolist()
                    assert end == start + 16


def test_a_canvas_holds_the_answer_and_then_ends_of_text() -> None:
    batch = told("two_step", count=3)
    drawn = canvases.draw(batch, 1, 32, generator())
    for row, problem in enumerate(problems.problems(3, "train", 3, "two_step")):
        assert TOKENIZER.decode(drawn.encoded[row, : int(batch.layout.prompt[row])].tolist()) == problem.prompt
        text = TOKENIZER.decode(drawn.clean[row].tolist(), skip_special_tokens=False)
        assert text == problem.answer + "<|endoftext|>" * 15
    assert drawn.fillable.all()


def test_noise_replaces_any_share_of_a_canvas_and_often_all_of_it() -> None:
    drawn = canvases.draw(told("two_step", count=300), 1, 32, generator())
    changed = (canvases.noised(drawn, NOISE, generator()) != drawn.clean).float().mean(1)
    assert float((changed > 0.95).float().mean()) > 0.25
    assert float((changed < 0.3).float().mean()) > 0.1
    masked = canvases.noised(drawn, Noise(vocab_size=len(NUMBERS), mask_id=MASK_ID, masks=1.0), generator())
    assert ((masked == MASK_ID) | (masked == drawn.clean)).all()


def test_a_sampled_step_keeps_what_the_engine_keeps() -> None:
    drawn = canvases.draw(told("two_step", count=5), 2, 16, generator())
    logits = 6 * torch.randn(5, 32, len(NUMBERS), generator=generator(4))
    logits.scatter_(2, drawn.clean[..., None], 30.0 * torch.rand(5, 32, 1, generator=generator(5)))
    sure = (logits.softmax(-1).amax(-1) > 0.999) & (logits.argmax(-1) == drawn.clean)
    after = canvases.sampled(
        drawn, logits, Noise(vocab_size=len(NUMBERS), mask_id=MASK_ID, masks=1.0), 0.5, generator()
    )
    shares = logits.softmax(-1)
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum(-1)
    for row in range(5):
        for index in range(2):
            at = (drawn.canvas == index).nonzero().squeeze(1)
            kept = torch.from_numpy(within_bound(entropy[row, at].numpy(), 0.5))
            assert ((after[row, at] != MASK_ID) == kept).all()
            assert (after[row, at][kept & sure[row, at]] == drawn.clean[row, at][kept & sure[row, at]]).all()


def test_batches_depend_on_their_step_alone_and_hold_both_tasks_and_drills() -> None:
    stream, again = Stream(MIX, TOKENIZER), Stream(MIX, TOKENIZER)
    kinds = set()
    for step in range(20, 50):
        batch = stream.batch(step)
        if step > 44:
            assert torch.equal(batch.ids, again.batch(step).ids)
        drilled = not batch.layout.prompt.any()
        assert len(batch.ids) in (MIX.rows, MIX.long_rows)
        kinds.add("drill" if drilled else "long" if len(batch.ids) == MIX.long_rows else "two_step")
    assert kinds == {"drill", "long", "two_step"}


class Quadratic:
    """An objective whose minimum is at 3, with noise that depends on the step."""

    def __init__(self, interrupted_at: int | None = None) -> None:
        self.network, self.interrupted_at = nn.Linear(1, 1), interrupted_at
        nn.init.zeros_(self.network.weight)
        nn.init.zeros_(self.network.bias)
        self.after, self.probes = 0, 0

    def loss(self, step: int) -> Tensor:
        if step == self.interrupted_at:
            raise KeyboardInterrupt
        noise = math.sin(step)
        return (self.network(torch.ones(1)) - 3 + 0.1 * noise).square().sum()

    def after_step(self) -> None:
        self.after += 1

    def probe(self) -> str:
        self.probes += 1
        return f"at {self.network.bias.item():.2f}"


@given(rows=st.integers(2, 12), columns=st.integers(2, 12), seed=st.integers(0, 99))
def test_an_update_has_the_momentum_s_singular_vectors_and_even_values(rows: int, columns: int, seed: int) -> None:
    stack = torch.randn(3, rows, columns, generator=generator(seed))
    left, values, right = torch.linalg.svd(stack, full_matrices=False)
    nearest = left @ right
    update = orthogonal(stack).float()
    assert torch.equal(update[1], orthogonal(stack[1]).float())
    big = values > 0.1 * values.amax(-1, keepdim=True)
    kept = torch.einsum("bir,bij,brj->br", left, update, right)
    assert ((kept[big] > 0.5) & (kept[big] < 1.4)).all()
    assert (nearest - update).norm() < nearest.norm()


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = Schedule(steps=200, learning_rate=0.05, other_rate=0.05, warmup=10, report_every=50, probe_every=50)
    whole = Quadratic()
    train(whole, schedule, tmp_path / "whole")
    assert whole.after == 200
    assert "step 200: at" in capsys.readouterr().out
    assert whole.network(torch.ones(1)).item() == pytest.approx(3, abs=0.1)

    with pytest.raises(KeyboardInterrupt):
        train(Quadratic(interrupted_at=120), schedule, tmp_path / "parts")
    resumed = Quadratic()
    train(resumed, schedule, tmp_path / "parts")
    assert resumed.after == 100
    for first, second in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(first, second)


def test_a_leg_of_a_run_is_the_beginning_of_another(tmp_path: Path) -> None:
    rates = Schedule(steps=200, learning_rate=0.05, other_rate=0.05, warmup=10, report_every=50, probe_every=50)

    with pytest.raises(KeyboardInterrupt):
        train(Quadratic(interrupted_at=100), attrs.evolve(rates, steps=120), tmp_path / "parts")
    parts, legs, plain = Quadratic(), Quadratic(), Quadratic()
    train(parts, rates, tmp_path / "parts")
    train(legs, attrs.evolve(rates, legs=((100, 120),)), tmp_path / "legs")
    train(plain, rates, tmp_path / "plain")
    found = [[parameter.item() for parameter in each.network.parameters()] for each in (parts, legs, plain)]
    assert found[0] == found[1] != found[2]


def test_what_batches_hold_follows_the_leg() -> None:
    long = attrs.evolve(MIX, drill=0.0, long=1.0, long_from=0.0, long_by=1.0, rows=2, long_rows=2)
    leg, shorter, whole = (
        Stream(each, TOKENIZER) for each in (attrs.evolve(long, legs=((50, 51),)), attrs.evolve(long, steps=51), long)
    )

    def alike(other: Stream, step: int) -> bool:
        return torch.equal(leg.batch(step).ids, other.batch(step).ids)

    assert all(alike(shorter, step) for step in range(30, 50))
    assert not all(alike(whole, step) for step in range(30, 50))
    assert all(alike(whole, step) for step in range(50, 60))
