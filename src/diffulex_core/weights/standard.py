"""The tensor names that most decoders of transformers share, for the generic decoder's parameters."""

from __future__ import annotations

from diffulex_core.weights.rules import Rename, Skip

ROTARY_TABLES: tuple[Skip, ...] = tuple(
    Skip(f"model.{owner}rotary_emb.inv_freq", "rotary frequencies are computed from config.json")
    for owner in ("", "layers.{i}.self_attn.", "layers.{i}.attention.")
)
"""Buffers that older checkpoints hold."""

STANDARD_DECODER: tuple[Rename | Skip, ...] = (
    Rename("model.embed_tokens.weight", "embed.weight"),
    Rename("model.layers.{i}.input_layernorm.weight", "layers.{i}.attn_norm.weight"),
    Rename(
        "model.layers.{i}.self_attn.{q,k,v}_proj.{weight,bias}",
        "layers.{i}.attn.qkv.{weight,bias}",
        shard="{q,k,v}",
    ),
    Rename("model.layers.{i}.self_attn.o_proj.{weight,bias}", "layers.{i}.attn.out.{weight,bias}"),
    Rename("model.layers.{i}.self_attn.{q,k}_norm.weight", "layers.{i}.attn.{q,k}_norm.weight"),
    Rename("model.layers.{i}.post_attention_layernorm.weight", "layers.{i}.ff_norm.weight"),
    Rename(
        "model.layers.{i}.mlp.{gate,up}_proj.{weight,bias}",
        "layers.{i}.mlp.gate_up.{weight,bias}",
        shard="{gate,up}",
    ),
    Rename("model.layers.{i}.mlp.down_proj.{weight,bias}", "layers.{i}.mlp.down.{weight,bias}"),
    Rename("model.norm.weight", "final_norm.weight"),
    Rename("lm_head.weight", "lm_head.weight"),
    *ROTARY_TABLES,
)
"""Rules for the names of Llama, Qwen2 and Qwen3: `WeightRules(*STANDARD_DECODER)`, with a family's own rules beside."""

STANDARD_EXPERTS: tuple[Rename, ...] = (
    Rename("model.layers.{i}.mlp.gate.weight", "layers.{i}.mlp.router.weight"),
    Rename(
        "model.layers.{i}.mlp.experts.{e}.{gate,up}_proj.weight", "layers.{i}.mlp.experts.w13", shard="{e}.{gate,up}"
    ),
    Rename("model.layers.{i}.mlp.experts.{e}.down_proj.weight", "layers.{i}.mlp.experts.w2", shard="{e}"),
    Rename("model.layers.{i}.mlp.experts.{gate,up}_proj", "layers.{i}.mlp.experts.w13", shard="{gate,up}"),
    Rename("model.layers.{i}.mlp.experts.gate_up_proj", "layers.{i}.mlp.experts.w13"),
    Rename("model.layers.{i}.mlp.experts.down_proj", "layers.{i}.mlp.experts.w2"),
)
"""Rules for routed experts: one tensor for each expert, as in Qwen3-MoE's files, or stacked ones."""
