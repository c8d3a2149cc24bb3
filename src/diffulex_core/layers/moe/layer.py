"""The sparse feed-forward layer: router, dispatcher, experts, and the MLP that every token passes."""

from __future__ import annotations

from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.layers.mlp import GatedMLP
from diffulex_core.layers.moe.dispatch import Dispatcher, LocalDispatcher
from diffulex_core.layers.moe.experts import Experts
from diffulex_core.layers.moe.routing import Router
from diffulex_core.layers.moe.spec import MoESpec


class MoE(nn.Module):
    """`sum over the chosen experts of weight * expert(x)`, plus `shared(x)` where there is a shared expert."""

    def __init__(self, ctx: BuildContext, hidden_size: int, spec: MoESpec) -> None:
        super().__init__()
        self.router = Router(ctx, hidden_size, spec)
        self.experts = Experts(
            ctx,
            num_experts=spec.num_experts,
            hidden_size=hidden_size,
            expert_size=spec.expert_size,
            activation=spec.activation,
        )
        self.shared = (
            GatedMLP(ctx, hidden_size, spec.shared_size, activation=spec.activation) if spec.shared_size else None
        )
        self.dispatcher: Dispatcher = LocalDispatcher(self.experts.held)
        self.tp = ctx.tp

    def forward(self, x: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, hidden], with one sum over the processes."""
        sent = self.dispatcher.dispatch(x, *self.router(x))
        addend = self.dispatcher.combine(self.experts(sent.x, sent.ids, sent.weights), sent)
        if self.shared is not None:
            addend = addend + self.shared.addend(x)
        return self.tp.sum(addend)
