"""Where the checkpoint tensors go: the families keep the names of Qwen3 and Llama."""

from diffulex_core.weights import STANDARD_DECODER, STANDARD_EXPERTS, WeightRules

WEIGHTS = WeightRules(*STANDARD_DECODER, *STANDARD_EXPERTS)
