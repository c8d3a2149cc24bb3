"""DiffusionGemma's passes against transformers' own class with the same checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.attention.reference import TorchReference
from diffulex_core.context import SoftInputs
from diffulex_core.protocols import AttentionBackend, DiffusionModel, SelfConditioned
from diffulex_gemma.model import DiffusionGemma
from tests.families.gemma import CANVAS, SLIDING_WINDOW, VOCAB, Bench, Fed, load, native_model, save

TABLE = [7, 2, 9, 0, 5, 3]
BACKENDS = pytest.mark.parametrize("backend", [TorchCPU(), TorchReference()], ids=["torch_cpu", "torch_ref"])
PREFIXES = (1, SLIDING_WINDOW - 1, SLIDING_WINDOW, 12)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "multi_query": {"num_key_value_heads": 1},
    "multi_head": {"num_key_value_heads": 4, "num_global_key_value_heads": None},
    "more_full_layers": {"layer_types": ["full_attention", "sliding_attention"] * 2 + ["full_attention"] * 2},
    "full_layers_only": {"layer_types": ["full_attention"] * 2, "num_hidden_layers": 2},
    "wide_window": {"sliding_window": 64},
    "window_of_two": {"sliding_window": 2},
    "every_expert": {"top_k_experts": 4, "num_experts": 4},
    "one_expert_each": {"top_k_experts": 1, "num_experts": 7},
    "rope": {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "proportional", "rope_theta": 300.0, "partial_rotary_factor": 0.6},
        }
    },
    "softcap": {"final_logit_softcapping": 3.0},
    "norm_eps": {"rms_norm_eps": 0.1},
    "causal": {"use_bidirectional_attention": None},
}


@attrs.frozen(eq=False)
class Pair:
    """One checkpoint twice: as transformers' network and as ours."""

    native: DiffusionGemmaForBlockDiffusion
    ours: DiffusionGemma


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    @cache
    def make(variant: str) -> Pair:
        folder: Path = tmp_path_factory.mktemp("gemma")
        native = native_model(**VARIANTS[variant])
        save(native, folder)
        return Pair(native, load(folder))

    return make


@pytest.fixture(scope="module")
def pair(pair_of: Callable[[str], Pair]) -> Pair:
    return pair_of("plain")


@pytest.fixture(scope="module")
def bfloat16(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder: Path = tmp_path_factory.mktemp("gemma")
    save(native_model(), folder)
    native = DiffusionGemmaForBlockDiffusion.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager", experts_implementation="eager"
    )
    return Pair(native, load(folder, torch.bfloat16))


def ids(length: int, salt: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(100 * salt + length)
    return torch.randint(0, VOCAB, (length,), generator=generator).tolist()


def batched(tokens: list[int]) -> Tensor:
    return torch.tensor([tokens])


def close(got: Tensor, expected: Tensor, *, rtol: float = 1e-4, atol: float = 1e-4) -> None:
    assert got.shape == expected.shape
    torch.testing.assert_close(got.float(), expected.float(), rtol=rtol, atol=atol)


@BACKENDS
@pytest.mark.parametrize("length", PREFIXES)
@torch.no_grad()
def test_the_encoder_equals_the_native_one_in_hidden_states_keys_and_values(
    pair: Pair, length: int, backend: AttentionBackend
) -> None:
    prefix = ids(length)
    expected = pair.native.model.encoder(input_ids=batched(prefix))
    bench = Bench(pair.ours, backend=backend)
    [hidden] = bench.run(Fed(tokens=prefix, final_end=length, table=TABLE))
    close(hidden, expected.last_hidden_state[0])
    for layer, cached in enumerate(expected.past_key_values.layers):
        keys, values = bench.stored(layer, TABLE, length)
        kept = cached.keys.shape[2]
        close(keys[length - kept :], cached.keys[0].transpose(0, 1))
        close(values[length - kept :], cached.values[0].transpose(0, 1))


@BACKENDS
@pytest.mark.parametrize("length", PREFIXES)
@torch.no_grad()
def test_a_canvas_equals_the_native_one_in_its_first_step_and_with_self_conditioning(
    pair: Pair, length: int, backend: AttentionBackend
) -> None:
    prefix, canvas = ids(length), ids(CANVAS, salt=1)
    first = pair.native(input_ids=batched(prefix), decoder_input_ids=batched(canvas)).logits
    second = pair.native(
        input_ids=batched(prefix), decoder_input_ids=batched(canvas), self_conditioning_logits=first / 0.8
    ).logits
    bench = Bench(pair.ours, backend=backend)
    fed = Fed(tokens=prefix + canvas, final_end=length, table=TABLE)
    [together] = bench.logits(fed)
    close(together[length:], first[0])
    # The next step feeds the canvas alone, over the prefix that the first one stored.
    soft = bench.soft(first[0] / 0.8)
    [alone] = bench.logits(Fed(tokens=canvas, start=length, final_end=length, table=TABLE, soft=soft))
    close(alone, second[0], rtol=1e-3, atol=1e-3)
    assert (second - first).abs().max() > 0.1


@torch.no_grad()
def test_a_finished_canvas_is_encoded_causally_in_the_forward_that_starts_the_next(pair: Pair) -> None:
    prefix, noise, finished, canvas = ids(11), ids(CANVAS, 1), ids(CANVAS, 2), ids(CANVAS, 3)
    native = pair.native
    past = native.model.encoder(input_ids=batched(prefix)).past_key_values
    native.model.encoder(input_ids=batched(finished), past_key_values=past)
    first = native(past_key_values=past, decoder_input_ids=batched(canvas)).logits
    second = native(past_key_values=past, decoder_input_ids=batched(canvas), self_conditioning_logits=first).logits

    bench = Bench(pair.ours)
    start, end = len(prefix), len(prefix) + CANVAS
    bench.run(Fed(tokens=prefix + noise, final_end=start, table=TABLE))
    bench.run(Fed(tokens=ids(CANVAS, 4), start=start, final_end=start, table=TABLE))
    [mixed] = bench.logits(Fed(tokens=finished + canvas, start=start, final_end=end, table=TABLE))
    close(mixed[CANVAS:], first[0])
    for layer, cached in enumerate(past.layers):
        keys, values = bench.stored(layer, TABLE, end)
        kept = cached.keys.shape[2]
        close(keys[end - kept :], cached.keys[0].transpose(0, 1))
        close(values[end - kept :], cached.values[0].transpose(0, 1))
    soft = bench.soft(mixed[CANVAS:])
    [alone] = bench.logits(Fed(tokens=canvas, start=end, final_end=end, table=TABLE, soft=soft))
    close(alone, second[0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_prompt_may_be_encoded_in_pieces(pair: Pair) -> None:
    prefix = ids(13)
    expected = pair.native.model.encoder(input_ids=batched(prefix)).last_hidden_state[0]
    bench = Bench(pair.ours)
    pieces = [
        bench.run(Fed(tokens=prefix[start:end], start=start, final_end=end, table=TABLE))[0]
        for start, end in ((0, 3), (3, 4), (4, 11), (11, 13))
    ]
    close(torch.cat(pieces), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_every_option_of_the_configuration_reaches_the_network(pair_of: Callable[[str], Pair], variant: str) -> None:
    pair = pair_of(variant)
    prefix, canvas = ids(12), ids(CANVAS, 1)
    expected = pair.native(input_ids=batched(prefix), decoder_input_ids=batched(canvas)).logits[0]
    [got] = Bench(pair.ours).logits(Fed(tokens=prefix + canvas, final_end=12, table=TABLE))
    close(got[12:], expected)


@torch.no_grad()
def test_soft_embeddings_are_the_mean_embedding_scaled_as_tokens_are(pair: Pair) -> None:
    assert isinstance(pair.ours, DiffusionModel)
    assert isinstance(pair.ours, SelfConditioned)
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(5)) * 4
    weight = pair.native.model.decoder.embed_tokens.weight.double()
    expected = logits.double().softmax(-1) @ weight * 32**0.5
    close(pair.ours.soft_embeddings(logits), expected)


@torch.no_grad()
def test_half_precision_rounds_the_embedding_scale_as_the_native_model_does(bfloat16: Pair) -> None:
    """sqrt(32) = 5.657 is 5.65625 in bfloat16; self-conditioning uses the same number."""
    model, native = bfloat16.ours, bfloat16.native.model.decoder
    certain = torch.full((4, VOCAB), -300.0)
    certain[range(4), [3, 0, 96, 50]] = 300.0
    expected = native.embed_tokens(torch.tensor([3, 0, 96, 50]))
    assert model.embed_scale == 5.65625
    assert torch.equal(model.soft_embeddings(certain), expected)


@torch.no_grad()
def test_logits_become_embeddings_in_the_precision_of_the_weights(bfloat16: Pair) -> None:
    logits = torch.randn(8, VOCAB, generator=torch.Generator().manual_seed(6)) * 5
    soft = bfloat16.ours.soft_embeddings(logits)
    assert soft.dtype == torch.bfloat16
    assert torch.equal(soft, bfloat16.ours.soft_embeddings(logits.bfloat16()))


@torch.no_grad()
def test_half_precision_is_as_near_to_full_precision_as_the_native_model_is(pair: Pair, bfloat16: Pair) -> None:
    """Logits have a standard deviation of 1; rounding may pick another expert, so that some rows are far off.

    How far depends on the prompt, for both alike: the median row of eight prompts may be at 0.1 or at 0.2.
    """
    ours_off, theirs_off = list[Tensor](), list[Tensor]()
    for number in range(32):
        prefix, canvas = ids(12, number), ids(CANVAS, number + 10)
        call = {"input_ids": batched(prefix), "decoder_input_ids": batched(canvas)}
        exact, theirs = (one.native(**call).logits[0] for one in (pair, bfloat16))
        [ours] = Bench(bfloat16.ours).logits(Fed(tokens=prefix + canvas, final_end=12, table=TABLE))
        ours_off.append((ours[12:] - exact).square().mean(-1))
        theirs_off.append((theirs - exact).square().mean(-1))
    ours_rows, theirs_rows = torch.cat(ours_off).sqrt(), torch.cat(theirs_off).sqrt()
    assert ours_rows.median() < 1.2 * theirs_rows.median()
    assert ours_rows.square().mean().sqrt() < 1.1 * theirs_rows.square().mean().sqrt()


@torch.no_grad()
def test_what_is_encoded_does_not_notice_a_canvas_and_a_canvas_notices_everything(pair: Pair) -> None:
    prefix, canvas = ids(9), ids(CANVAS, 1)

    def hidden(tokens: list[int], soft: Tensor | None = None) -> Tensor:
        return Bench(pair.ours).run(Fed(tokens=tokens, final_end=9, table=TABLE, soft=soft))[0]

    before = hidden(prefix + canvas)
    for position in range(13):
        changed = prefix + canvas
        changed[position] = (changed[position] + 1) % VOCAB
        differs = (hidden(changed) != before).any(-1).tolist()
        assert differs == [at >= position if at < 9 else True for at in range(13)] or position >= 9
        assert position < 9 or differs == [False] * 9 + [True] * 4
    believed = hidden(prefix + canvas, torch.randn(CANVAS, 32, generator=torch.Generator().manual_seed(1)))
    assert (believed != before).any(-1).tolist() == [False] * 9 + [True] * 4


@torch.no_grad()
def test_embeddings_for_a_final_row_are_not_read(pair: Pair) -> None:
    tokens = ids(6)
    soft = torch.randn(6, 32, generator=torch.Generator().manual_seed(2))
    plain = Fed(tokens=tokens, final_end=6, table=TABLE)
    bench = Bench(pair.ours)
    [expected] = bench.run(plain)
    context = bench.context(plain)
    given = attrs.evolve(context, soft=SoftInputs(rows=torch.arange(6), embeddings=soft))
    silent = attrs.evolve(context, final=None)
    for other in (given, silent):
        inputs = torch.tensor([*tokens, 0, 0]), torch.tensor([*range(6), 0, 0])
        assert torch.equal(pair.ours(*inputs, other)[:6], expected)


@torch.no_grad()
def test_the_bits_of_a_sequence_are_those_it_has_alone(pair: Pair) -> None:
    fed = [
        Fed(tokens=ids(9 + CANVAS, 1), final_end=9, table=[0, 1, 2, 3]),
        Fed(tokens=ids(5, 2), final_end=5, table=[4, 5]),
        Fed(tokens=ids(CANVAS, 3), final_end=0, table=[6], soft=torch.ones(CANVAS, 32)),
        Fed(tokens=ids(1, 4), final_end=1, table=[7]),
    ]
    alone = [Bench(pair.ours).run(one)[0] for one in fed]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        together = Bench(pair.ours).run(*[fed[place] for place in order])
        for place, rows in zip(order, together, strict=True):
            assert torch.equal(rows, alone[place])


@torch.no_grad()
def test_logits_stay_below_the_softcap(pair: Pair) -> None:
    logits = pair.ours.logits(1e4 * torch.randn(8, 32, generator=torch.Generator().manual_seed(3)))
    assert logits.dtype == torch.float32
    assert 29 < logits.abs().max() <= 30
