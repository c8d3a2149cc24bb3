"""Where the checkpoint tensors go: Dream keeps the names of Qwen2, DreamReasoner those of Qwen3.

config.json says which of the two it is; tensors of the other one contradict it.
"""

from diffulex_core.weights import STANDARD_DECODER, Stray, WeightRules

DREAM = WeightRules(
    *STANDARD_DECODER,
    Stray(
        "model.layers.{i}.self_attn.{q,k}_norm.weight",
        "only DreamReasoner (architectures DreamForCausalLM) normalises queries and keys, but this is read as Dream"
        " (DreamModel), so config.json and the tensors do not belong together",
    ),
)
REASONER = WeightRules(
    *STANDARD_DECODER,
    Stray(
        "model.layers.{i}.self_attn.{q,k,v}_proj.bias",
        "only Dream (architectures DreamModel) has biases here, but this is read as DreamReasoner (DreamForCausalLM),"
        " so config.json and the tensors do not belong together",
    ),
)
