"""What training sees: tokens, masks and the export's names."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file

from diffulex_core.pattern import BlockCausal, Extent, FullPrefix, Phase
from diffulex_tiny import problems
from diffulex_tiny.recipe import corruption, tokenizer as vocabulary
from diffulex_tiny.recipe.export import export
from diffulex_tiny.recipe.sizes import Sizes
from diffulex_tiny.recipe.stream import Mix, Stream
from diffulex_tiny.recipe.train import Recipe, build_network, loss_of

TOKENIZER = vocabulary.build_tokenizer()
MIX = Mix(steps=4, rows=4, drill=0.6, drill_until=0.75, long=0.0, first_largest=12)
SMALL = Recipe(sizes=Sizes(hidden_size=32, layers=1, heads=2, ffn_size=32), mix=MIX)


@given(text=st.text(max_size=60))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_numbers_and_words_of_the_problems_are_single_tokens() -> None:
    for problem in problems.problems(2, "train", 200):
        prompt, answer = TOKENIZER.encode(problem.prompt).ids, TOKENIZER.encode(problem.answer).ids
        assert TOKENIZER.encode(problem.prompt + problem.answer).ids == prompt + answer
        assert len(answer) == 17
    for word in vocabulary.number_words():
        assert len(TOKENIZER.encode(word).ids) == 1


@settings(max_examples=25, deadline=None)
@given(prompt=st.integers(1, 20), answer=st.integers(1, 20), block_size=st.sampled_from([4, 8]), prefill=st.booleans())
def test_training_masks_show_what_the_engine_shows(prompt: int, answer: int, block_size: int, prefill: bool) -> None:
    total = -(-(prompt + answer) // block_size) * block_size
    layout = corruption.Layout(
        prompt=torch.tensor([prompt]),
        total=torch.tensor([total]),
        results=torch.zeros(1, total, dtype=torch.bool),
        fillable=torch.ones(1, total, dtype=torch.bool),
    )
    at = torch.arange(total).numpy()

    def extent(phase: Phase) -> Extent:
        return Extent(prompt_len=prompt, phase=phase, final_end=0, end=total)

    cases = [
        (
            corruption.block_causal(layout, block_size),
            BlockCausal(block_size=block_size).key_end(at, extent(Phase.DECODE)),
        )
    ]
    full_prefix = FullPrefix(block_size=block_size)
    phase = Phase.PREFILL if prefill else Phase.DECODE
    end = full_prefix.key_end(at, extent(phase))
    if not prefill:
        end[: prompt // block_size * block_size] = prompt
    cases.append((corruption.full_prefix(layout, block_size, prefill), end))
    for visible, expected in cases:
        assert (visible[0, 0].sum(dim=1).numpy() == expected).all()
        assert (visible[0, 0] == (torch.arange(total)[None] < torch.from_numpy(expected)[:, None])).all()


def test_only_answers_are_hidden_and_every_row_has_something_to_fill() -> None:
    batch = Stream(MIX, TOKENIZER).batch(3)
    for blockwise in (False, True):
        hidden = corruption.draw_hidden(batch.layout, 8, blockwise, torch.Generator().manual_seed(1))
        assert hidden.any(dim=1).all()
        assert not (hidden & ~batch.layout.fillable).any()


def test_a_batch_depends_on_its_step_alone_and_is_drawn_from_training() -> None:
    first, second = Stream(MIX, TOKENIZER), Stream(MIX, TOKENIZER)
    second.batch(0)
    for step in range(4):
        assert torch.equal(first.batch(step).ids, second.batch(step).ids)


def test_a_gradient_step_lowers_the_loss_on_its_batch() -> None:
    network = build_network(SMALL, TOKENIZER)
    batch = Stream(MIX, TOKENIZER).batch(0)
    mask = TOKENIZER.token_to_id(vocabulary.MASK)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = loss_of(network, batch, mask, torch.Generator().manual_seed(0))
    before.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    after = loss_of(network, batch, mask, torch.Generator().manual_seed(0))
    assert after < before


def test_an_export_holds_every_weight_once_under_llada_names(tmp_path: Path) -> None:
    network = build_network(SMALL, TOKENIZER)
    export(network, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(each.numel() for each in network.parameters())
    assert all(name.startswith("model.transformer.") for name in tensors)
    assert torch.equal(
        tensors["model.transformer.blocks.0.ff_proj.weight"], network.model.layers[0].mlp.gate_proj.weight
    )
