"""The `flash` backend without flash-attn: what its probe says, and what it would ask of the package."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from diffulex_core.attention.case import AttentionCase
from diffulex_core.attention.flash import FlashAttention, probe
from diffulex_core.testing.attention_problems import Problem, Stretch
from diffulex_core.testing.oracles.attention import dense

FITS = AttentionCase(
    device_type="cuda", dtype=torch.bfloat16, head_dim=128, num_heads=8, num_kv_heads=2, page_size=256, block_size=32
)


def varlen(q: Tensor, k: Tensor, v: Tensor, **named: Any) -> Tensor:
    """What the package documents of `flash_attn_varlen_func` over pages, sequence by sequence in float64."""
    assert named["causal"] is False
    assert {named[name].dtype for name in ("cu_seqlens_q", "cu_seqlens_k", "block_table")} == {torch.int32}
    starts, lengths = named["cu_seqlens_q"].tolist(), named["cu_seqlens_k"].diff().tolist()
    assert named["max_seqlen_q"] == max(named["cu_seqlens_q"].diff().tolist())
    assert named["max_seqlen_k"] == max(lengths)
    out = []
    for index, length in enumerate(lengths):
        pages = named["block_table"][index]
        keys, values = (each[pages].flatten(0, 1)[:length].double() for each in (k, v))
        rows = q[starts[index] : starts[index + 1]].double()
        group = rows.shape[1] // keys.shape[1]
        keys, values = (each.repeat_interleave(group, 1) for each in (keys, values))
        weights = (torch.einsum("rhd,khd->hrk", rows, keys) * named["softmax_scale"]).softmax(-1)
        out.append(torch.einsum("hrk,khd->rhd", weights, values))
    return torch.cat(out).to(q.dtype)


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flash_attn")
    vars(module)["flash_attn_varlen_func"] = varlen
    monkeypatch.setitem(sys.modules, "flash_attn", module)


def problem(*, starts: int = 0) -> Problem:
    """Block-causal rows of one sequence, rows that see nothing, and a canvas of another."""
    case = attrs.evolve(FITS, device_type="cpu", dtype=torch.float32, head_dim=8, num_heads=4)
    blocks = Stretch(name=0, key_start=(starts,) * 6, key_end=(4, 4, 4, 8, 8, 8), slots=8, table=(3,))
    nothing = Stretch(name=1, key_start=(0, 0), key_end=(0, 0), slots=0, table=(0,))
    canvas = Stretch(name=2, key_start=(0,) * 3, key_end=(300,) * 3, slots=300, table=(2, 1))
    return Problem(case=case, stretches=(blocks, nothing, canvas), padding=3, num_pages=4, seed=0, scale=0.4)


def test_without_the_package_the_probe_says_how_to_get_it() -> None:
    assert probe(FITS) == ["flash-attn is not installed (pip install 'diffulex-core[flash]')"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"device_type": "cpu"}, "not on 'cpu'"),
        ({"dtype": torch.float32}, "float16 or bfloat16, not in torch.float32"),
        ({"page_size": 32}, "page_size is 32, and its pages hold a multiple of 256 slots"),
        ({"head_dim": 512}, "head_dim is 512"),
        ({"head_dim": 20}, "head_dim is 20"),
        ({"windows": (None, 512)}, "sliding window"),
        ({"num_kv_heads": 3}, "8 query heads cannot share 3"),
    ],
)
def test_the_probe_says_what_it_cannot_express(changed: dict[str, Any], reason: str) -> None:
    [*_, found] = [each for each in probe(attrs.evolve(FITS, **changed)) if "not installed" not in each]
    assert reason in found


@pytest.mark.usefixtures("_installed")
def test_every_run_of_rows_is_a_sequence_of_its_own() -> None:
    asked = problem()
    out = asked.attend(FlashAttention())
    exact = dense(asked.query, asked.pages(1), asked.pages(2), asked.batch, asked.scale)
    torch.testing.assert_close(out.double(), exact, atol=1e-5, rtol=1e-5)
    assert not out[6:8].any()
    assert not out[-3:].any()


@pytest.mark.usefixtures("_installed")
def test_keys_that_begin_later_are_refused() -> None:
    with pytest.raises(ValueError, match="keys from another one than the first on"):
        problem(starts=2).attend(FlashAttention())


@pytest.mark.usefixtures("_installed")
def test_a_batch_that_sees_nothing_is_zero() -> None:
    asked = attrs.evolve(problem(), stretches=problem().stretches[1:2])
    assert not asked.attend(FlashAttention()).any()
