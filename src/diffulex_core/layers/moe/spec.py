"""What a mixture of experts looks like, as numbers; importing this imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs

from diffulex_core.errors import ConfigError

Activation = Literal["silu", "gelu_tanh"]
"""Gate of an MLP: `x sigmoid(x)`, or the tanh approximation of GELU."""


@attrs.frozen(kw_only=True)
class MoESpec:
    """Experts, how tokens are routed to them, and what every token passes besides.

    Attributes:
        num_experts: routed experts.
        experts_per_token: how many of them a token visits.
        expert_size: width of one expert's gated MLP.
        router: "softmax" over all experts, or "sigmoid" of each (which may be limited to groups).
        num_groups: contiguous groups of experts, of which a token visits `groups_kept`; a number that does not divide
            the experts, or is below 1, means no groups.
        groups_kept: groups that stay eligible, those with the largest sum of their two best scores.
        renormalize: divide the chosen experts' weights by their sum.
        scale: factor on the weights, last.
        correction_bias: the router adds a bias to the scores by which experts are chosen, not to their weights.
        shared_size: width of the gated MLP that every token passes; 0 = none.
        activation: gate of the routed and the shared experts.
    Raises:
        ConfigError: listing every number that makes no mixture.
    """

    num_experts: int
    experts_per_token: int
    expert_size: int
    router: Literal["softmax", "sigmoid"]
    num_groups: int = 1
    groups_kept: int = 1
    renormalize: bool
    scale: float = 1.0
    correction_bias: bool = False
    shared_size: int = 0
    activation: Activation = "silu"

    def __attrs_post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ConfigError(problems)

    @property
    def limited(self) -> bool:
        """Whether only some groups of experts are eligible for a token."""
        return self._grouped and self.groups_kept < self.num_groups

    @property
    def group_size(self) -> int:
        """Experts of one group."""
        return self.num_experts // self.num_groups if self._grouped else self.num_experts

    @property
    def _grouped(self) -> bool:
        return self.num_groups > 1 and self.num_experts % self.num_groups == 0

    def _problems(self) -> list[str]:
        values = {"num_experts": self.num_experts, "expert_size": self.expert_size}
        problems = [f"{name} is {value!r}; it must be at least 1." for name, value in values.items() if value < 1]
        if not 1 <= self.experts_per_token <= max(self.num_experts, 1):
            problems.append(f"A token cannot visit {self.experts_per_token} of {self.num_experts} experts.")
        if self.shared_size < 0:
            problems.append(f"shared_size is {self.shared_size!r}; it must be at least 0.")
        if not self.scale > 0:
            problems.append(f"The scale of the experts' weights is {self.scale!r}; it must be positive.")
        if self.router == "softmax" and (self.limited or self.correction_bias):
            problems.append("Groups of experts and a correction bias exist for the sigmoid router only.")
        if self._grouped and self.groups_kept < 1:
            problems.append(f"groups_kept is {self.groups_kept!r}; it must be at least 1.")
        elif self.limited and self.groups_kept * self.group_size < self.experts_per_token:
            problems.append(
                f"{self.groups_kept} groups of {self.group_size} experts are too few for {self.experts_per_token}"
                " experts per token."
            )
        return problems
