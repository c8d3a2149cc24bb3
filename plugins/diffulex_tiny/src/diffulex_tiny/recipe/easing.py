"""Parts that come in gradually, so that a network trained without them need not start again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class EasedNorm(nn.Module):
    """x at `share` 0, its root mean square norm at `share` 1; in between, values are scaled by a power of that size.

    What the norm makes of inputs of their usual size has that size too; `final_weight` says what a plain norm's weight
    must be for it.

    Args:
        width: of the last dimension.
        eps: added to the mean square.
        weighted: whether there is a weight, which starts at `start`.
    """

    share: float
    usual: Tensor

    def __init__(self, width: int, eps: float, *, weighted: bool = True, start: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), start)) if weighted else None
        self.register_buffer("usual", torch.ones(()))
        self.eps, self.share = eps, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        wide = x.float()
        wide = wide * (torch.sqrt(wide.square().mean(-1, keepdim=True) + self.eps) / self.usual) ** -self.share
        return (wide if self.weight is None else wide * self.weight).to(x.dtype)

    @torch.no_grad()
    def fill(self, value: float) -> None:
        """Set all of the weight."""
        assert self.weight is not None
        self.weight.fill_(value)

    def final_weight(self) -> Tensor:
        """[width] weight of the plain norm that this is at `share` 1; a number where there is no weight."""
        return self.usual if self.weight is None else self.weight.detach() * self.usual


def eased_gelu(x: Tensor, share: float) -> Tensor:
    """SiLU at `share` 0, GELU (tanh) at 1."""
    gelu = functional.gelu(x, approximate="tanh")
    return gelu if share == 1 else torch.lerp(functional.silu(x), gelu, share)


@torch.no_grad()
def calibrate(network: nn.Module, forward: Callable[[], object]) -> None:
    """Set what is usual for each eased norm to what it sees in one forward pass."""

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, EasedNorm)
        norm.usual.copy_(inputs[0].float().square().mean(-1).sqrt().mean())

    hooks = [each.register_forward_pre_hook(note) for each in eased_norms(network)]
    forward()
    for hook in hooks:
        hook.remove()


def eased_norms(network: nn.Module) -> list[EasedNorm]:
    """All of a network."""
    return [module for module in network.modules() if isinstance(module, EasedNorm)]
