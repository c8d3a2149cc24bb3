"""Loading a LoRA adapter into a network that holds its weights."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

import attrs
import torch
from torch import nn

from diffulex_core.checkpoint import read_json_object
from diffulex_core.errors import CheckpointError
from diffulex_core.protocols import DiffusionModel, WeightResolver
from diffulex_core.weights.loader import as_module
from diffulex_core.weights.lora.apply import attach, merge, unattachable
from diffulex_core.weights.lora.config import CONFIG, AdapterConfig, parse_adapter_config
from diffulex_core.weights.lora.plan import match, read_updates
from diffulex_core.weights.lora.sites import Sites
from diffulex_core.weights.lora.tensors import list_tensors
from diffulex_core.weights.resolve import Resolution

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class AdapterReport:
    """What was loaded.

    Attributes:
        layers: paths of the layers that carry the adapter, as the checkpoint calls them.
        merged: whether it went into the weights.
    """

    layers: tuple[str, ...]
    merged: bool


def load_adapter(
    model: DiffusionModel | nn.Module,
    resolver: WeightResolver,
    checkpoint: Path,
    config: Mapping[str, object],
    adapter: Path,
    *,
    merge_weights: bool,
    dtype: torch.dtype,
    owner: str = "",
) -> AdapterReport:
    """Read a peft adapter and bring it into a network. Nothing changes unless all of the adapter fits.

    An adapter names the modules of the checkpoint. Their weights are looked up as the loader does, so that packed
    parameters and those divided among processes get the shares of A and B that belong to their parts.

    Args:
        model: with its weights loaded.
        resolver: the family's.
        checkpoint: its directory.
        config: its parsed config.json.
        adapter: directory of adapter_config.json and adapter_model.safetensors.
        merge_weights: add the adapter to the weights, in place of computing its product in each forward.
        dtype: the engine's dtype, for resolvers.
        owner: the model family and its plugin, for messages.
    Raises:
        CheckpointError: listing every target without a layer or tensors, every tensor without a use, every shape or
            rank that does not fit, and every option of peft that cannot be honoured.
    """
    network = as_module(model)
    adapter_config, problems = read_adapter_config(adapter)
    tensors = list_tensors(adapter)
    problems += tensors.problems
    if adapter_config is None or not tensors.pairs:
        nothing = ["It holds no lora_A and lora_B of any layer."] if not problems else []
        raise CheckpointError(str(adapter), [*problems, *nothing], owner=owner)
    sites = Sites.of(network, resolver, Resolution.of(network, resolver, config, dtype), checkpoint)
    matched, misfits = match(adapter_config, tensors, sites)
    problems += misfits
    if problems:
        raise CheckpointError(str(adapter), problems, owner=owner)
    updates, problems = read_updates(adapter, adapter_config, tensors, matched)
    problems += [] if merge_weights else unattachable(updates)
    if problems:
        raise CheckpointError(str(adapter), problems, owner=owner)
    if merge_weights:
        merge(updates)
    else:
        attach(updates)
    return AdapterReport(layers=tuple(matched), merged=merge_weights)


def read_adapter_config(adapter: Path) -> tuple[AdapterConfig | None, list[str]]:
    """The adapter's configuration and what is wrong with it; see `parse_adapter_config`.

    Raises:
        CheckpointError: there is no adapter_config.json, or it holds no JSON object.
    """
    if not (adapter / CONFIG).is_file():
        hint = "An adapter's directory, as peft saves it, holds it beside adapter_model.safetensors; check lora_path."
        raise CheckpointError(str(adapter), [f"{CONFIG} is missing. {hint}"])
    config, problems = parse_adapter_config(read_json_object(adapter / CONFIG))
    return config, list(problems)


def warn_of_another_base(adapter: Path, names: Collection[str]) -> None:
    """Warn if the adapter says that it was trained over a model called otherwise.

    Args:
        adapter: its directory.
        names: how the model is called here; only the last component of a path counts.
    """
    config, _ = read_adapter_config(adapter)
    if config is None or not config.base:
        return
    known = {_last(name) for name in names}
    if _last(config.base) not in known:
        _log.warning(
            "The adapter at %s was trained over %r, but the model is %s. Over another model its answers are wrong.",
            adapter,
            config.base,
            " = ".join(sorted({repr(name) for name in names})),
        )


def _last(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name.lower()
