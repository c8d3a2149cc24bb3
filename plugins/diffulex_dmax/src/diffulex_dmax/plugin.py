"""Registers the strategy dmax; imports no torch."""

from __future__ import annotations

from diffulex_core.plugin import Capability, DecodingStrategy, Register, SamplingMode, hookimpl


@hookimpl
def diffulex_register_strategies(register: Register[DecodingStrategy]) -> None:
    register(
        DecodingStrategy(
            name="dmax",
            pattern="diffulex_dmax.request:block_causal",
            req="diffulex_dmax.request:dmax_request",
            requires={
                Capability.MASK_TOKEN,
                Capability.BLOCK_CAUSAL,
                Capability.EDIT,
                Capability.SOFT_INPUTS,
                Capability.ALIGNED_LOGITS,
            },
            thresholds={"add_block_threshold", "accept_threshold", "token_stability_threshold"},
            config_cls="diffulex_dmax.options:DMaxOptions",
            forces={"sampling_mode": "edit"},
            modes={"edit": SamplingMode()},
        )
    )
