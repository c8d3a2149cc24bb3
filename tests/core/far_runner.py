"""The engine's runner on a device that is none, beside an engine on the CPU that makes and executes the same plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.distributed import ALONE
from diffulex_core.host import Host
from diffulex_core.kv_store import KVStore
from diffulex_core.layers.activations import ACTIVATIONS
from diffulex_core.layers.moe.spec import Activation
from diffulex_core.runner import EagerRunner
from diffulex_core.sampling import PackedSampler
from diffulex_core.sizing import Capacity
from diffulex_core.testing.engines import SHARPNESS, sharp
from diffulex_core.testing.subjects import CPU
from diffulex_core.types import AttentionBatch, StepOutput, StepPlan
from diffulex_core.weights import dummy_weights
from diffulex_core.worker import Blueprint, Worker, component, make_pattern
from tests.core.far_device import FAR, FarTensor, far_device


class MaskedAttention:
    """Attention over all slots of all pages, masked: an `AttentionBackend` that asks for no number."""

    def attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, batch: AttentionBatch, scale: float
    ) -> Tensor:
        """See `AttentionBackend.attend`."""
        tables = batch.page_tables.clamp(min=0)[batch.row_sequence]  # [rows, pages]
        group = query.shape[1] // key_pages.shape[2]
        keys, values = (
            pages[tables].flatten(1, 2).repeat_interleave(group, dim=2) for pages in (key_pages, value_pages)
        )  # [rows, slots, heads, head_dim]
        at = torch.arange(keys.shape[1], device=query.device)
        seen = (at >= batch.key_start[:, None]) & (at < batch.key_end[:, None])
        scores = torch.einsum("rhd,rkhd->rhk", query, keys) * scale
        weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1).nan_to_num()
        return torch.einsum("rhk,rkhd->rhd", weights, values)


class AllExperts:
    """Every expert computes every row: an `ExpertsKernel` that asks for no number."""

    def __call__(
        self, x: Tensor, ids: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, activation: Activation
    ) -> Tensor:
        """See `ExpertsKernel`."""
        gate, up = torch.einsum("td,efd->tef", x, w13).chunk(2, dim=-1)
        every = torch.einsum("tef,edf->ted", ACTIVATIONS[activation](gate) * up, w2)
        experts = torch.arange(len(w13), device=x.device)
        share = ((ids[:, :, None] == experts) * weights[:, :, None]).sum(1)
        return torch.einsum("ted,te->td", every, share).to(x.dtype)


class FarBeside:
    """An `Executor` in the engine's process that executes every plan on the far device as well, and compares.

    A step in which the host waits for the far device more than once, or for anything but its decisions, raises; so does
    one whose time of leisure is not before that.
    """

    def __init__(self, worker: Worker, blueprint: Blueprint, host: Host) -> None:
        self._near, self._blueprint, self._host = worker, blueprint, host
        self._far: EagerRunner | None = None

    @property
    def vocab_size(self) -> int:
        return self._near.vocab_size

    def capacity(self) -> Capacity:
        return self._near.capacity()

    def allocate(self, num_pages: int) -> None:
        self._near.allocate(num_pages)
        self._far = self._far_runner(num_pages)

    def execute(self, plan: StepPlan) -> StepOutput:
        assert self._far is not None
        expected = self._near.execute(plan)
        leisure = list[int]()
        with far_device() as waits:
            self._far.at_leisure(lambda: leisure.append(len(waits)))
            found = self._far.execute(plan)
        asked = any(len(decision.positions) for decision in expected.decisions)
        assert waits == ["a tensor is copied to the host"] * asked, f"step {plan.step}"
        assert leisure == [0], f"step {plan.step}"
        for one, other in zip(found.decisions, expected.decisions, strict=True):
            assert one.tokens.tolist() == other.tokens.tolist(), f"step {plan.step}"
            assert one.accepted.tolist() == other.accepted.tolist(), f"step {plan.step}"
        return expected

    def close(self) -> None:
        self._near.close()
        self._far = None

    @torch.inference_mode()
    def _far_runner(self, num_pages: int) -> EagerRunner:
        """The runner that the engine would have on such a device, over the same weights."""
        config, host = self._blueprint.config, self._host
        family = host.models.entry(config.family.name)
        ctx = BuildContext(dtype=torch.float32, device=CPU, experts_kernel=AllExperts)
        network = host.load(family.descriptor.build, provenance=family.provenance)(self._blueprint.checkpoint, ctx)
        dummy_weights(network, device=CPU)
        _carry_over(network)
        network.register_forward_hook(lambda module, inputs, hidden: hidden * SHARPNESS)
        mask, page_size = config.model.mask_token_id, config.cache.page_size
        with torch.inference_mode(), far_device():
            pages = KVStore.allocate(network.kv_geometry, num_pages, page_size, torch.float32, FAR)
        sampler = component(host, "sampler", config.strategy.sampler, PackedSampler)(
            vocab_size=self.vocab_size, forbidden=frozenset() if mask is None else frozenset({mask}), tp=ALONE
        )
        policy = component(host, "cache_policy", config.cache.cache_policy, None)
        return EagerRunner(
            model=network,
            sampler=sampler,
            pattern=make_pattern(config, host),
            backend=MaskedAttention(),
            kv_store=pages,
            page_size=page_size,
            device=FAR,
            max_logits_tokens=config.schedule.max_logits_tokens,
            cache_policy=policy(geometry=network.kv_geometry, tp=ALONE),
        )


def far_beside(blueprint: Blueprint, *, host: Host, devices: Sequence[torch.device], **arguments: Any) -> FarBeside:
    """The factory of the executor."""
    return FarBeside(sharp(blueprint, host=host, devices=devices, **arguments), blueprint, host)


def _carry_over(network: nn.Module) -> None:
    """Put the parameters and buffers of a network on the far device."""
    there = dict[int, FarTensor]()
    for module in network.modules():
        for name, each in list(module.named_parameters(recurse=False)):
            far = there.setdefault(id(each), FarTensor(each.detach()))
            with far_device():
                module.register_parameter(name, nn.Parameter(far, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, FarTensor(buffer))
