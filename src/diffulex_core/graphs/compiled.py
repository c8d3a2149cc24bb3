"""A network compiled by torch.compile, in which attention over pages stays one operation."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable
from importlib.util import find_spec

import attrs
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from diffulex_core.context import ForwardContext
from diffulex_core.errors import ConfigError
from diffulex_core.graphs.forward import Network
from diffulex_core.kernels.layers import HeadNorms, LayerKernels
from diffulex_core.layers.norm import normed
from diffulex_core.layers.rope import Rotation

Attend = Callable[[Tensor, Tensor, Tensor, int, int, float], Tensor]


class CompiledNetwork:
    """Calls a network through what `compile` makes of it.

    Attention reads and writes pages by tables, and its backends are kernels of their own already: the compiler is shown
    one opaque operation for it.
    """

    def __init__(self, network: Network, compile: Callable[[Network], Network], *, mode: str = "default") -> None:
        """
        Args:
            network: the network.
            compile: `torch.compile` with its mode, or another one.
            mode: what torch_compile_mode is, for messages.
        """
        self._mode = mode
        self._ctx: ForwardContext | None = None
        self._attend = _operation(weakref.ref(self))
        self._compiled = compile(network)

    def __call__(self, input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """See `Network`.

        Raises:
            ConfigError: torch.compile cannot compile the network.
        """
        self._ctx = ctx
        try:
            return self._compiled(input_ids, positions, _shown(ctx, self._attend))
        except TorchDynamoException as error:
            raise ConfigError([self._refusal(error)]) from error
        finally:
            self._ctx = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: int, kind: int, scale: float) -> Tensor:
        """What the operation does: attention of the forward that is running."""
        assert self._ctx is not None, "attention belongs to a forward"
        return self._ctx.attend(layer, kind, query, key, value, scale)

    def _refusal(self, error: TorchDynamoException) -> str:
        # Further paragraphs are advice to those who debug torch.
        said = " ".join(str(error).strip().split("\n\n")[0].split())
        return (
            f"enable_cudagraph_torch_compile is on (torch_compile_mode={self._mode!r}), and torch.compile cannot "
            f"compile the network: {type(error).__name__}: {said}. Set enable_cudagraph_torch_compile=False (or "
            "enable_torch_compile=False, which allows it nowhere), or try another torch_compile_mode; the error that "
            "caused this one has all that torch says."
        )


@attrs.frozen(kw_only=True, eq=False)
class _Shown(ForwardContext):
    """The context as the compiler sees it."""

    operation: Attend

    def attend(self, layer: int, kind: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return self.operation(query, key, value, layer, kind, scale)

    def turn_and_attend(
        self,
        kernels: LayerKernels,
        layer: int,
        kind: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        norms: HeadNorms | None,
        rotation: Rotation,
        scale: float,
    ) -> Tensor:
        """Norms and rotation are left to the compiler."""
        if norms is not None:
            query = normed(query, norms.query, norms.eps, wide=norms.wide)
            key = normed(key, norms.key, norms.eps, wide=norms.wide)
            value = normed(value, None, norms.eps) if norms.values else value
        return self.attend(layer, kind, rotation(query), rotation(key), value, scale)


def _shown(ctx: ForwardContext, operation: Attend) -> _Shown:
    values = attrs.astuple(ctx, recurse=False)
    names = [field.name for field in attrs.fields(ForwardContext)]
    return _Shown(**dict(zip(names, values, strict=True)), operation=operation)


def _operation(owner: weakref.ref[CompiledNetwork]) -> Attend:
    """An operation of torch that asks the owner."""

    def attend(query: Tensor, key: Tensor, value: Tensor, layer: int, kind: int, scale: float) -> Tensor:
        network = owner()
        assert network is not None, "the network is gone"
        return network.attend(query, key, value, layer, kind, scale)

    # torch knows operations by name, and engines of one process must not share one.
    made = torch.library.custom_op(f"diffulex::attend_{uuid.uuid4().hex}", attend, mutates_args=())
    made.register_fake(lambda query, *_: torch.empty(query.shape, dtype=query.dtype, device=query.device))
    return made


def require_compiler(device: torch.device) -> None:
    """Raises ConfigError where torch.compile's own compiler has nothing to compile with."""
    advice = "or set enable_cudagraph_torch_compile=False."
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise ConfigError([f"torch.compile needs Triton on {device}: install triton, {advice}"])
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        need = "torch.compile needs a C++ compiler on the CPU and finds none"
        raise ConfigError([f"{need}: install g++ or clang++ (or name one in CXX), {advice}"]) from error
