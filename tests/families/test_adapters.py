"""LoRA over every registered family: an adapter over all its linear layers is a checkpoint that holds it already."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffulex_core.errors import CheckpointError
from diffulex_core.layers.linear import Multiplies
from diffulex_core.weights.lora import AdapterReport, load_adapter
from diffulex_core.weights.resolve import Resolution
from tests.core.forward import Rows, block_causal, pages, run_model
from tests.core.lora_kit import Matrices, adapter_tensors, random_matrices, write_adapter
from tests.families.layouts import Layout, layouts, write
from tests.families.subjects import PLAIN, Subject

CASES = [(subject, layout) for subject in PLAIN for layout in layouts(subject) if layout.name in ("apart", "stacked")]
RANK, ALPHA = 3, 4.5


def linear_layers(subject: Subject, layout: Layout) -> dict[str, tuple[int, int]]:
    """(out, in) of the matrices of a checkpoint that belong to one layer alone, by the layer's path."""
    where = Resolution.of(subject.network(), subject.resolver, subject.config, torch.float32)
    return {
        name.removesuffix(".weight"): (place.shape[0], place.shape[1])
        for name, place in layout.places.items()
        if name.endswith(".weight")
        and len(place.shape) == 2
        and "embed.weight" not in place.names
        and not ((found := where(name)) is not None and found.copied)
    }


FREE = [case for case in CASES if any("layers" in path or "blocks" in path for path in linear_layers(*case))]
COPIED = [case for case in CASES if case not in FREE]


def drawn(layout: Layout) -> dict[str, Tensor]:
    """A random checkpoint; norms and scales near 1."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for name, place in layout.places.items():
        numbers = torch.randn(place.shape, generator=generator)
        made[name] = numbers * place.shape[-1] ** -0.5 if len(place.shape) > 1 else 1 + 0.1 * numbers
    return made


def with_adapter(tensors: dict[str, Tensor], matrices: Matrices) -> dict[str, Tensor]:
    """The checkpoint whose weights hold the adapter."""
    summed = dict(tensors)
    for path, (a, b) in matrices.items():
        base = tensors[f"{path}.weight"].double()
        summed[f"{path}.weight"] = (base + ALPHA / RANK * (b.double() @ a.double())).float()
    return summed


def adapt(subject: Subject, network: nn.Module, base: Path, adapter: Path, *, merge: bool) -> AdapterReport:
    return load_adapter(
        network, subject.resolver, base, subject.config, adapter, merge_weights=merge, dtype=torch.float32
    )


def adapter_of(folder: Path, matrices: Matrices) -> Path:
    return write_adapter(folder, adapter_tensors(matrices), r=RANK, lora_alpha=ALPHA, target_modules=sorted(matrices))


def logits(network: nn.Module) -> Tensor:
    rows = Rows(tokens=[3 * place + 1 for place in range(11)], key_end=block_causal(11, 4), table=[2, 0, 1])
    return run_model(network, [rows], pages(network.kv_geometry, 3, 4))[0]  # type: ignore[arg-type]


def beside(network: nn.Module) -> Collection[str]:
    """Paths of the modules that can run an adapter beside their weight."""
    return {path for path, module in network.named_modules() if isinstance(module, Multiplies)}


@pytest.mark.parametrize(("subject", "layout"), FREE, ids=str)
def test_an_adapter_in_the_weights_is_a_checkpoint_that_holds_it(
    subject: Subject, layout: Layout, tmp_path: Path
) -> None:
    tensors, matrices = drawn(layout), random_matrices(linear_layers(subject, layout), RANK)
    write(tmp_path / "base", tensors)
    write(tmp_path / "summed", with_adapter(tensors, matrices))
    network, expected = subject.loaded(tmp_path / "base"), subject.loaded(tmp_path / "summed")
    before = logits(network)
    report = adapt(subject, network, tmp_path / "base", adapter_of(tmp_path / "adapter", matrices), merge=True)
    assert set(report.layers) == set(matrices)
    wanted = expected.state_dict()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-5, rtol=1e-5)
    assert (logits(network) - before).abs().max() > 0.01


@pytest.mark.parametrize(("subject", "layout"), FREE, ids=str)
def test_an_adapter_beside_the_weights_gives_the_same_logits(subject: Subject, layout: Layout, tmp_path: Path) -> None:
    where = Resolution.of(network := subject.network(), subject.resolver, subject.config, torch.float32)
    holders = {id(parameter): path.rpartition(".")[0] for path, parameter in network.named_parameters()}
    shapes = {
        path: shape
        for path, shape in linear_layers(subject, layout).items()
        if (found := where(f"{path}.weight")) is not None and holders[id(found.target)] in beside(network)
    }
    matrices = random_matrices(shapes, RANK)
    write(tmp_path / "base", drawn(layout))
    adapter = adapter_of(tmp_path / "adapter", matrices)
    merged, unmerged = (subject.loaded(tmp_path / "base") for _ in range(2))
    adapt(subject, merged, tmp_path / "base", adapter, merge=True)
    adapt(subject, unmerged, tmp_path / "base", adapter, merge=False)
    expected = logits(merged)
    assert (logits(unmerged) - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(("subject", "layout"), FREE, ids=str)
def test_every_layer_that_offers_to_run_an_adapter_multiplies_where_it_would_be(
    subject: Subject, layout: Layout, tmp_path: Path
) -> None:
    write(tmp_path, drawn(layout))
    network = subject.loaded(tmp_path)
    called: set[str] = set()
    for path in beside(network):
        layer = network.get_submodule(path)
        assert isinstance(layer, Multiplies)

        def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, path: str = path) -> Tensor:
            called.add(path)
            return functional.linear(x, weight, bias)

        layer.multiply = multiply
    logits(network)
    assert called == beside(network)


@pytest.mark.parametrize(("subject", "layout"), COPIED, ids=str)
def test_an_adapter_over_one_of_two_copies_of_a_weight_is_refused(
    subject: Subject, layout: Layout, tmp_path: Path
) -> None:
    tensors = drawn(layout)
    write(tmp_path / "base", tensors)
    path = next(name for name in tensors if name.endswith("layers.0.self_attn.q_proj.weight")).removesuffix(".weight")
    out_features, in_features = tensors[f"{path}.weight"].shape
    adapter = adapter_of(tmp_path / "adapter", random_matrices({path: (out_features, in_features)}, RANK))
    for merge in (False, True):
        with pytest.raises(CheckpointError, match="shares its weight with another layer"):
            adapt(subject, subject.loaded(tmp_path / "base"), tmp_path / "base", adapter, merge=merge)


def test_the_families_fall_into_both_kinds() -> None:
    assert {"llada", "dream", "sdar"} <= {subject.family.name for subject, _ in FREE}
    assert {subject.family.name for subject, _ in COPIED} == {"diffusion_gemma"}
