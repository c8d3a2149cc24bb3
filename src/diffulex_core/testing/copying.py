"""A network that knows its answers: the logits of a row say which position it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffulex_core.host import Host
from diffulex_core.testing.engines import as_module
from diffulex_core.worker import Blueprint, Worker

COPYING = "kit_copying"
"""Name of the executor."""
SURE = 40.0
"""Logit of the token that a row predicts; all others have 0."""


def token_at(position: int, plain: Sequence[int]) -> int:
    """The plain token that stands at a position of every answer."""
    return plain[(5 * position + 3) % len(plain)]


def copying(blueprint: Blueprint, *, host: Host, devices: Sequence[torch.device], **arguments: Any) -> Worker:
    """An executor in the engine's process whose network predicts `token_at`.

    Row i predicts position i, or position i + 1 where the family's logits are shifted: as a network would that was
    trained in the way that the descriptor says.
    """
    worker = Worker(blueprint, host=host, device=devices[0], sharers=arguments["sharers"])
    config, network = blueprint.config, as_module(worker)
    special = {config.model.mask_token_id, *config.model.eos_token_ids}
    plain = [token for token in range(blueprint.num_tokens) if token not in special]
    ahead = 1 if config.family.logits == "shifted" else 0
    columns = worker.network.vocab_size

    def note(module: nn.Module, inputs: tuple[Any, ...], hidden: Tensor) -> Tensor:
        noted = hidden.clone()
        noted[:, 0] = inputs[1].to(hidden.dtype)
        return noted

    def logits(hidden: Tensor) -> Tensor:
        predicted = [token_at(int(position) + ahead, plain) for position in hidden[:, 0].tolist()]
        return SURE * nn.functional.one_hot(torch.tensor(predicted), columns).to(hidden.dtype)

    network.register_forward_hook(note)
    network.logits = logits  # type: ignore[assignment]  # in place of the head of this one network
    return worker
