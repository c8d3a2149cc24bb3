"""DiffusionGemma as transformers has it, for comparison in tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion


def hf_reference(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DiffusionGemmaForBlockDiffusion:
    """The native class in fp32 with a checkpoint's weights.

    Call it with `input_ids` (what is encoded), `decoder_input_ids` (the canvas) and `self_conditioning_logits`.

    Args:
        config: the parsed config.json.
        tensors: the checkpoint's tensors by their own names, as `save_pretrained` writes them.
    Raises:
        ValueError: the tensors are not those of the network.
    """
    model = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig.from_dict(dict(config)))
    model.set_attn_implementation("eager")
    missing, unexpected = model.load_state_dict({name: part.float() for name, part in tensors.items()}, strict=False)
    own = model.state_dict(keep_vars=True)
    written = {own[name].data_ptr() for name in tensors if name in own}
    missing = [name for name in missing if own[name].data_ptr() not in written]
    if missing or unexpected:
        raise ValueError(f"The checkpoint lacks {missing} and holds {unexpected}, which the network does not have.")
    model.eval()
    return model
