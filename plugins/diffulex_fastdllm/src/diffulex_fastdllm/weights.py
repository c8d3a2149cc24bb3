"""Where Fast-dLLM v2's checkpoint tensors go: they keep the names of Qwen2."""

from diffulex_core.weights import STANDARD_DECODER, WeightRules

WEIGHTS = WeightRules(*STANDARD_DECODER)
