"""Registers the block-buffer runtime's two presets: multi_bd and d2f."""

from __future__ import annotations

from diffulex_core.plugin import Capability, DecodingStrategy, Register, SamplingMode, hookimpl

_THRESHOLDS = frozenset(
    {"add_block_threshold", "semi_complete_threshold", "accept_threshold", "token_stability_threshold"}
)


@hookimpl
def diffulex_register_strategies(register: Register[DecodingStrategy]) -> None:
    register(
        DecodingStrategy(
            name="multi_bd",
            aliases=("multi_block_diffusion", "block_diffusion"),
            pattern="diffulex_multibd.patterns:block_causal",
            requires={Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL},
            thresholds=_THRESHOLDS,
            config_cls="diffulex_multibd.options:EditOptions",
            modes={
                "edit": SamplingMode(
                    req="diffulex_multibd.edit:edit_request",
                    requires={Capability.EDIT, Capability.ALIGNED_LOGITS},
                    thresholds={"edit_threshold", "remask_threshold"},
                    # A block fills its most confident mask in every step, whatever stands before it.
                    ignores={"semi_complete_threshold"},
                    keys={"max_post_edit_steps", "penalty_lambda", "enable_remask"},
                )
            },
        )
    )
    register(
        DecodingStrategy(
            name="d2f",
            pattern="diffulex_multibd.patterns:full_prefix",
            requires={Capability.MASK_TOKEN, Capability.FULL_PREFIX},
            thresholds=_THRESHOLDS,
            # A prompt's K/V depend on the whole prompt, so no two different prompts could share a page.
            forces={"enable_prefix_caching": False},
        )
    )
