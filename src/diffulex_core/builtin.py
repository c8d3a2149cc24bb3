"""Core's own plugin: it registers the built-in parts and commands through the same hooks as everybody else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffulex_core.hookspecs import Register
from diffulex_core.plugin import AttentionBackendPlugin, Component, hookimpl

if TYPE_CHECKING:
    import click

    from diffulex_core.config import EngineConfig

_ADVICE = "Leave it out, or choose a strategy such as llada_canvas or dream_canvas."


@hookimpl
def diffulex_register_attention(register: Register[AttentionBackendPlugin]) -> None:
    register(
        AttentionBackendPlugin(
            name="torch_ref",
            aliases=("naive",),
            impl="diffulex_core.attention.reference:TorchReference",
            probe="diffulex_core.attention.reference:probe",
            priority=0,
        )
    )
    register(
        AttentionBackendPlugin(
            name="torch_cpu",
            impl="diffulex_core.attention.cpu:TorchCPU",
            probe="diffulex_core.attention.cpu:probe",
            priority=10,
        )
    )
    register(
        AttentionBackendPlugin(
            name="flash",
            impl="diffulex_core.attention.flash:FlashAttention",
            probe="diffulex_core.attention.flash:probe",
            priority=3,
        )
    )
    register(
        AttentionBackendPlugin(
            name="triton",
            aliases=("triton_grouped",),
            impl="diffulex_core.attention.triton.backend:PagedTriton",
            probe="diffulex_core.attention.triton.backend:probe",
            priority=5,
        )
    )


@hookimpl
def diffulex_register_components(register: Register[Component]) -> None:
    register(Component(kind="executor", name="in_process", factory="diffulex_core.worker:in_process"))
    register(Component(kind="executor", name="spawned", factory="diffulex_core.distributed.spawned:SpawnedExecutor"))
    register(Component(kind="cache_policy", name="sparse_refresh", factory="diffulex_core.sparse.policy:SparseRefresh"))
    register(Component(kind="model_source", name="directory", factory="diffulex_core.sources:DirectorySource"))
    register(Component(kind="model_source", name="hub", factory="diffulex_core.sources:HubSource"))
    register(Component(kind="layer_kernels", name="triton", factory="diffulex_core.kernels.layers.fused:TritonLayers"))
    register(Component(kind="kernel", name="moe_gemm.torch", factory="diffulex_core.kernels.moe.grouped:TorchExperts"))
    register(Component(kind="kernel", name="moe_gemm.triton", factory="diffulex_core.kernels.moe.fused:TritonExperts"))
    register(Component(kind="kernel", name="moe_gemm.naive", factory="diffulex_core.kernels.moe.naive:NaiveExperts"))


@hookimpl
def diffulex_validate_config(config: EngineConfig) -> Sequence[str]:
    from diffulex_core.canvas.options import CanvasOptions

    if not config.cache.sparse.enabled or isinstance(config.strategy_options, CanvasOptions):
        return ()
    name = config.strategy.name
    return [f"sparse.enabled is True, but the strategy '{name}' generates no canvas of fixed length. {_ADVICE}"]


@hookimpl
def diffulex_add_commands(cli: click.Group) -> None:
    from diffulex_core.cli.check import check
    from diffulex_core.cli.config import config
    from diffulex_core.cli.generate import generate
    from diffulex_core.cli.new import new
    from diffulex_core.cli.plugins import plugins
    from diffulex_core.cli.profile import profile

    plugins.add_command(check)
    plugins.add_command(new)
    cli.add_command(generate)
    cli.add_command(profile)
    cli.add_command(plugins)
    cli.add_command(config)
