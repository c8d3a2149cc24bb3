"""The configurations of the released models are claimed by their family and give networks of the released size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffulex_core.config import resolve
from diffulex_core.context import BuildContext
from diffulex_core.host import Host

PUBLISHED = Path(__file__).parent / "published"
PARAMETERS = {
    "llada": 8_015_581_184,
    "llada2": 16_255_638_528,
    "dream": 7_615_616_512,
    "dream_reasoner": 8_190_735_360,
    "fast_dllm_v2": 1_543_714_304,
    "sdar": 4_411_424_256,
    "sdar_moe": 30_532_122_624,
    "stable_diffcoder": 8_250_462_208,
}
"""Those of the released checkpoints or of the models they were trained from, else the published shapes added up."""


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.discover()


def config_of(family: str) -> Mapping[str, Any]:
    config: Mapping[str, Any] = json.loads((PUBLISHED / f"{family}.json").read_text())
    return config


@pytest.mark.parametrize("family", PARAMETERS)
def test_a_released_configuration_gives_a_network_of_the_released_size(family: str, host: Host) -> None:
    config = config_of(family)
    resolved = resolve("released", {}, host=host, checkpoint=config)
    assert resolved.family.name == family
    assert not resolved.warnings
    build = host.load(resolved.family.build, provenance=host.models.entry(family).provenance)
    network = build(config, BuildContext(dtype=torch.bfloat16, device=torch.device("meta")))
    assert isinstance(network, nn.Module)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[family]


def test_diffusion_gemma_has_the_heads_and_windows_of_the_release(host: Host) -> None:
    family = host.models.get("diffusion_gemma")
    build = host.load(family.build, provenance=host.models.entry(family.name).provenance)
    network = build(config_of("diffusion_gemma"), BuildContext(dtype=torch.bfloat16, device=torch.device("meta")))
    shapes = [(each.num_heads, each.num_kv_heads, each.head_dim) for each in network.kv_geometry]
    assert shapes == ([(16, 8, 256)] * 5 + [(16, 2, 512)]) * 5
    assert tuple(network.windows) == (1024, None)
    assert 25e9 < sum(parameter.numel() for parameter in network.parameters()) < 26e9
