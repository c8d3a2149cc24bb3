"""A plugin as strangers write one, with every hook and every descriptor: type checkers find nothing to say."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import click

from diffulex_core.plugin import (
    AttentionBackendPlugin,
    Capability,
    CompletionReason,
    Component,
    DecodingStrategy,
    EngineConfig,
    ModelFamily,
    Observer,
    Register,
    SamplerTraits,
    SamplingMode,
    StepOutput,
    StepPlan,
    hookimpl,
    key,
)


@attrs.frozen(kw_only=True)
class Options:
    """Keys of the strategy."""

    draft_length: int = key(4, "Tokens drafted ahead of the current block.", minimum=1)


@hookimpl
def diffulex_register_models(register: Register[ModelFamily]) -> None:
    register(
        ModelFamily(
            name="mymodel",
            aliases=("mymodel_base",),
            architectures=("MyModelForMaskedLM",),
            build="diffulex_mymodel.model:build",
            weights="diffulex_mymodel.model:WEIGHTS",
            provides={Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL, "mymodel_trick"},
            logits="shifted",
            sampler=SamplerTraits(force_rule="always"),
            alias_settings={"mymodel_base": {"block_size": 8}},
            defaults={"block_size": 16},
            sizes=(1, 64),
            tiny="diffulex_mymodel.model:TINY",
        )
    )


@hookimpl
def diffulex_register_strategies(register: Register[DecodingStrategy]) -> None:
    register(
        DecodingStrategy(
            name="myway",
            pattern="diffulex_mymodel.patterns:causal_blocks",
            requires={Capability.MASK_TOKEN},
            thresholds=["accept_threshold"],
            modes={"wild": SamplingMode(requires={Capability.EDIT}, keys={"draft_length"})},
            presets={"quick": {"temperature": 0.0}},
            config_cls="diffulex_mymodel.options:Options",
        )
    )


@hookimpl
def diffulex_register_attention(register: Register[AttentionBackendPlugin]) -> None:
    register(
        AttentionBackendPlugin(
            name="myattention", impl="diffulex_mymodel.attention:Mine", probe="diffulex_mymodel.attention:probe"
        )
    )


@hookimpl
def diffulex_register_components(register: Register[Component]) -> None:
    register(Component(kind="sampler", name="mysampler", factory="diffulex_mymodel.sampler:MySampler"))


@hookimpl
def diffulex_validate_config(config: EngineConfig) -> Sequence[str]:
    if config.family.name == "mymodel" and config.model.dtype == "float16":
        return ["dtype is 'float16', but mymodel overflows in it; set dtype='bfloat16'."]
    return ()


class Log:
    """Counts steps."""

    def __init__(self) -> None:
        self.steps = 0

    def on_request_added(self, request_id: int) -> None:
        print(request_id)

    def on_step(self, plan: StepPlan, output: StepOutput, seconds: float) -> None:
        self.steps += len(plan.windows) == len(output.decisions) and seconds > 0

    def on_request_finished(self, request_id: int, reason: CompletionReason) -> None:
        print(request_id, reason.value)

    def close(self) -> None:
        print(self.steps)


@hookimpl
def diffulex_make_observer(config: EngineConfig) -> Observer | None:
    return Log() if config.runtime.enforce_eager else None


@hookimpl
def diffulex_add_commands(cli: click.Group) -> None:
    @cli.command("mycommand")
    def mycommand() -> None:
        """Say hello."""
        click.echo("hello")

    del mycommand
