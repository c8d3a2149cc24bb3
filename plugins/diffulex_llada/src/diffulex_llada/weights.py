"""Where LLaDA's checkpoint tensors go.

`ff_out` names two things: each block's down projection and, directly below `transformer`, the head.
"""

from diffulex_core.weights import Rename, WeightRules

WEIGHTS = WeightRules(
    Rename("model.transformer.wte.weight", "embed.weight"),
    Rename("model.transformer.blocks.{i}.{attn,ff}_norm.weight", "layers.{i}.{attn,ff}_norm.weight"),
    Rename(
        "model.transformer.blocks.{i}.{q,k,v}_proj.{weight,bias}", "layers.{i}.attn.qkv.{weight,bias}", shard="{q,k,v}"
    ),
    Rename("model.transformer.blocks.{i}.attn_out.{weight,bias}", "layers.{i}.attn.out.{weight,bias}"),
    Rename("model.transformer.blocks.{i}.ff_proj.{weight,bias}", "layers.{i}.mlp.gate_up.{weight,bias}", shard="gate"),
    Rename("model.transformer.blocks.{i}.up_proj.{weight,bias}", "layers.{i}.mlp.gate_up.{weight,bias}", shard="up"),
    Rename("model.transformer.blocks.{i}.ff_out.{weight,bias}", "layers.{i}.mlp.down.{weight,bias}"),
    Rename("model.transformer.ln_f.weight", "final_norm.weight"),
    Rename("model.transformer.ff_out.{weight,bias}", "lm_head.{weight,bias}"),
)
