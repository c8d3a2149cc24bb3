"""The experts that one process holds, stacked."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.distributed.ranges import Range, even_range, whole
from diffulex_core.layers.linear import empty_parameter
from diffulex_core.layers.moe.spec import Activation
from diffulex_core.weights.types import Part, ShardId


class Experts(nn.Module):
    """Gated MLPs without biases: `w13` [held, 2 * size, hidden], gate rows first, and `w2` [held, hidden, size].

    Each process of the group holds a contiguous range of whole experts.
    """

    def __init__(
        self, ctx: BuildContext, *, num_experts: int, hidden_size: int, expert_size: int, activation: Activation
    ) -> None:
        """Experts without values.

        Raises:
            ConfigError: the group's size does not divide the number of experts.
            IncompatibleError: the chosen kernel cannot serve here.
        """
        super().__init__()
        self.held = even_range(num_experts, ctx.tp, "the number of experts")
        self.w13 = empty_parameter(ctx, self.held.length, 2 * expert_size, hidden_size)
        self.w2 = empty_parameter(ctx, self.held.length, hidden_size, expert_size)
        self.activation: Activation = activation
        self.kernel = ctx.experts_kernel()

    def parts(self, parameter: str) -> Mapping[ShardId | None, Part]:
        """See `weights.PartedModule`.

        `w13` takes one tensor of its own form, "gate" and "up" [experts, size, hidden], or "7.gate" and "7.up" of each
        expert [size, hidden]; `w2` takes one tensor, or "7" of each expert [hidden, size].
        """
        stored = self.get_parameter(parameter)
        if parameter == "w2":
            return {None: Part.of(stored, self.held), **_each(stored, self.held, "")}
        gate, up = stored.chunk(2, dim=1)
        return {
            None: Part.of(stored, self.held),
            "gate": Part.of(gate, self.held, covers=_names(self.held, ".gate")),
            "up": Part.of(up, self.held, covers=_names(self.held, ".up")),
            **_each(gate, self.held, ".gate"),
            **_each(up, self.held, ".up"),
        }

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of the chosen experts' outputs.

        Args:
            x: [rows, hidden].
            ids: [rows, slots] int32 index among the experts held here; -1 = none.
            weights: [rows, slots] float32; a slot of weight 0 contributes nothing.
        Returns:
            [rows, hidden], summed in fp32 in the order of the slots.
        """
        return self.kernel(x, ids, weights, self.w13, self.w2, self.activation)


def _names(held: Range, suffix: str) -> tuple[ShardId, ...]:
    return tuple(f"{expert}{suffix}" for expert in range(held.size))


def _each(stacked: Tensor, held: Range, suffix: str) -> dict[ShardId | None, Part]:
    """A part for every expert, also for those that other processes hold."""
    length = stacked.shape[1]
    elsewhere = stacked.new_empty(0, *stacked.shape[2:])
    return {
        f"{expert}{suffix}": Part(view=stacked[expert - held.start], pieces=(whole(length),), size=length)
        if held.start <= expert < held.start + held.length
        else Part(view=elsewhere, size=length)
        for expert in range(held.size)
    }
