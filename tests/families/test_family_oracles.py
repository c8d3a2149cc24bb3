"""Every family's checkpoint layout and logits against its oracle, which knows nothing of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from diffulex_core.plugin import Capability
from tests.families.layouts import Layout, layouts, write
from tests.families.oracle_logits import check_cached, check_whole
from tests.families.subjects import PLAIN, Subject, host

UNDER_A_MASK = [subject for subject in PLAIN if Capability.SELF_CONDITIONING not in subject.family.provides]
"""Families whose oracle is a transformers network under a 4-D mask; the others' own tests compare their passes."""


def oracle_of(subject: Subject) -> Callable[[Mapping[str, Any], Mapping[str, Tensor]], PreTrainedModel]:
    assert subject.family.hf_reference, f"{subject} names no oracle"
    reference: Any = host().load(subject.family.hf_reference, provenance=subject.entry.provenance)
    assert callable(reference)
    return reference


def drawn(layout: Layout) -> dict[str, Tensor]:
    """Random tensors: matrices that keep the scale, everything else near 1 or near 0, none an identity."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for name, place in layout.places.items():
        numbers = torch.randn(place.shape, generator=generator)
        if len(place.shape) > 1:
            made[name] = numbers * place.shape[-1] ** -0.5
        else:
            made[name] = numbers * 0.2 + (not name.endswith("bias"))
    return made


@pytest.mark.parametrize("subject", UNDER_A_MASK, ids=str)
def test_logits_equal_the_oracles_whole_and_cached(subject: Subject, tmp_path: Path) -> None:
    layout = next(iter(layouts(subject)))
    tensors = drawn(layout)
    write(tmp_path, tensors, files=2)
    model = subject.loaded(tmp_path)
    oracle = oracle_of(subject)(subject.config, tensors)
    check_whole(model, oracle, block=4)
    check_cached(model, oracle, block=4)


@pytest.mark.parametrize("subject", UNDER_A_MASK, ids=str)
def test_the_oracle_refuses_a_checkpoint_that_lacks_a_tensor(subject: Subject) -> None:
    tensors = drawn(next(iter(layouts(subject))))
    missing = next(name for name in tensors if "down" in name or "ff_out" in name)
    del tensors[missing]
    with pytest.raises((RuntimeError, KeyError, ValueError)):
        oracle_of(subject)(subject.config, tensors)
