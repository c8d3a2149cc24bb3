"""Blended inputs: what the network makes of them, where they end up in a batch, and on how many processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from diffulex_core.context import BuildContext
from diffulex_core.distributed import Communicator
from diffulex_core.layers import DecoderSpec, build_decoder
from diffulex_core.layers.decoder import Decoder
from diffulex_core.packing import pack
from diffulex_core.pattern import BlockCausal, Phase
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.thread_group import ThreadGroup
from diffulex_core.types import Blends, Span, StepPlan, Window

VOCAB, HIDDEN = 13, 16
TABLE = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(3))


def network(tp: Communicator) -> Decoder:
    """A decoder that holds its share of `TABLE`."""
    spec = DecoderSpec(
        vocab_size=VOCAB, hidden_size=HIDDEN, num_layers=1, num_heads=4, num_kv_heads=4, ffn_size=16,
        rope_theta=1e4, norm="rms", norm_eps=1e-6, activation="silu", qkv_bias=False, out_bias=False,
        mlp_bias=False, head_bias=False, tie_embeddings=True,
    )  # fmt: skip
    decoder = build_decoder(spec, BuildContext(dtype=torch.float32, device=torch.device("cpu"), tp=tp))
    held = decoder.embed.held
    decoder.embed.weight.zero_()
    decoder.embed.weight[: held.length] = TABLE[held.start : held.start + held.length]
    return decoder


def blend(ids: list[list[int]], weights: list[list[float]], match_norm: list[bool], ranks: int = 1) -> Tensor:
    """What every one of the ranks makes of it."""
    first, *others = ThreadGroup(ranks).run(
        lambda tp: network(tp).blend(torch.tensor(ids), torch.tensor(weights), torch.tensor(match_norm))
    )
    for other in others:
        assert torch.equal(other, first)
    return first


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_blend_is_the_weighted_sum_scaled_to_the_mean_norm_where_that_is_asked_for(ranks: int) -> None:
    ids, weights = [[3, 12], [3, 12], [5, 0]], [[0.7, 0.3], [0.7, 0.3], [1.0, 0.0]]
    plain, matched, alone = blend(ids, weights, [False, True, True], ranks)
    expected = 0.7 * TABLE[3] + 0.3 * TABLE[12]
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(matched.norm(), 0.7 * TABLE[3].norm() + 0.3 * TABLE[12].norm())
    torch.testing.assert_close(matched / matched.norm(), expected / expected.norm())
    torch.testing.assert_close(alone, TABLE[5])


def test_embeddings_that_cancel_out_stay_finite() -> None:
    assert blend([[3, 3]], [[0.5, -0.5]], [True]).isfinite().all()


def window(request_id: int, start: int, count: int, blends: Blends | None) -> Window:
    span = Span(
        start=start,
        tokens=np.arange(count),
        catch_up=0,
        store_until=start,
        phase=Phase.DECODE,
        groups=(),
        advances=True,
        blends=blends,
    )
    return Window(
        request_id=request_id,
        span=span,
        prompt_len=1,
        page_table=np.arange(4),
        params=SamplingParams(),
        draw=0,
    )


def test_blends_of_different_widths_share_a_batch() -> None:
    one = Blends(
        positions=np.array([5, 6]), ids=np.array([[1], [2]]), weights=np.array([[0.5], [0.25]]), match_norm=True
    )
    two = Blends(
        positions=np.array([8]), ids=np.array([[3, 4, 5]]), weights=np.array([[0.1, 0.2, 0.3]]), match_norm=False
    )
    plan = StepPlan(step=0, windows=(window(0, 4, 4, one), window(1, 0, 3, None), window(2, 8, 4, two)))
    blended = pack(plan, BlockCausal(block_size=4), (None,), 4).blended
    assert blended is not None
    assert blended.rows.tolist() == [1, 2, 7]
    assert blended.ids[:3].tolist() == [[1, 0, 0], [2, 0, 0], [3, 4, 5]]
    np.testing.assert_allclose(blended.weights[:3], [[0.5, 0, 0], [0.25, 0, 0], [0.1, 0.2, 0.3]], rtol=1e-6)
    assert blended.match_norm[:3].tolist() == [True, True, False]
    assert len(blended.ids) == 8
    assert not blended.weights[3:].any()
    assert (
        pack(StepPlan(step=0, windows=(window(1, 0, 3, None),)), BlockCausal(block_size=4), (None,), 4).blended is None
    )
