"""Registers Dream and DreamReasoner; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffulex_core.plugin import Capability, DecodingStrategy, ModelFamily, Register, SamplerTraits, hookimpl
from diffulex_dream.canvas.options import PRESETS

if TYPE_CHECKING:
    from diffulex_core.plugin import EngineConfig

STOP_TOKENS = ("<|im_end|>", "<|dlm_pad|>")
"""Ends of a turn; only DiffuCoder has the second."""

# The end of a text and of a turn in Qwen2.5's and Qwen3's vocabulary.
_EOS = (151643, 151645)


@hookimpl
def diffulex_register_models(register: Register[ModelFamily]) -> None:
    register(
        ModelFamily(
            name="dream",
            # They differ in their weights alone.
            aliases=("dream_coder", "diffucoder"),
            architectures=("DreamModel",),
            model_types=("Dream",),
            build="diffulex_dream.model:build_dream",
            weights="diffulex_dream.weights:DREAM",
            provides=frozenset[str](
                (Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL, Capability.FULL_PREFIX, Capability.FULL_ATTENTION)
            ),
            logits="shifted",
            sampler=SamplerTraits(force_rule="after_semi_complete"),
            default_strategy="d2f",
            defaults={"mask_token_id": 151666, "eos_token_ids": _EOS},
            mask_token="<|mask|>",
            stop_tokens=STOP_TOKENS,
            # The checkpoints' own class is a copy of Qwen2's with a few special tokens more.
            tokenizer_classes={"DreamTokenizer": "transformers:Qwen2Tokenizer"},
            check_config="diffulex_dream.config:check_dream",
            tiny="diffulex_dream.config:TINY_DREAM",
            hf_reference="diffulex_dream.oracle:qwen2",
        )
    )
    register(
        ModelFamily(
            name="dream_reasoner",
            architectures=("DreamForCausalLM",),
            model_types=("Dream",),
            build="diffulex_dream.model:build_reasoner",
            weights="diffulex_dream.weights:REASONER",
            provides=frozenset[str]((Capability.MASK_TOKEN, Capability.BLOCK_CAUSAL)),
            logits="aligned",
            sampler=SamplerTraits(force_rule="after_semi_complete"),
            default_strategy="multi_bd",
            defaults={"block_size": 32, "mask_token_id": 151669, "eos_token_ids": _EOS},
            stop_tokens=STOP_TOKENS[:1],
            check_config="diffulex_dream.config:check_reasoner",
            tiny="diffulex_dream.config:TINY_REASONER",
            hf_reference="diffulex_dream.oracle:qwen3",
        )
    )


@hookimpl
def diffulex_register_strategies(register: Register[DecodingStrategy]) -> None:
    register(
        DecodingStrategy(
            name="dream_canvas",
            pattern="diffulex_core.canvas.pattern:full_canvas",
            req="diffulex_dream.canvas.request:make_request",
            requires={Capability.MASK_TOKEN, Capability.FULL_ATTENTION},
            thresholds={"accept_threshold"},
            config_cls="diffulex_dream.canvas.options:DreamCanvasOptions",
            presets=PRESETS,
            # Any token of a canvas changes the K/V of all others.
            forces={"enable_prefix_caching": False},
            # A canvas has no buffer, and blocks that are called block_length.
            unread={"block_size", "buffer_size"},
        )
    )


@hookimpl
def diffulex_validate_config(config: EngineConfig) -> Sequence[str]:
    from diffulex_dream.canvas.options import DreamCanvasOptions

    if not isinstance(config.strategy_options, DreamCanvasOptions):
        return ()
    sparse = config.cache.sparse
    if not (sparse.enabled and sparse.force_first):
        return ()
    problem = "sparse.force_first is True, a rule for blocks, and the strategy 'dream_canvas' has none."
    return [f"{problem} Leave it out, or choose llada_canvas."]
