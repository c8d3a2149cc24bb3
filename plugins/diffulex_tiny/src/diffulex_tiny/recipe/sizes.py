"""The sizes that the decoders of the tiny checkpoints share, so that one can start from another's weights."""

from __future__ import annotations

from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class Sizes:
    """Shape of a decoder.

    Attributes:
        heads: query heads; each has a key/value head of its own.
        context: positions that config.json states.
    """

    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    ffn_size: int = 384
    context: int = 512

    def described(self) -> dict[str, Any]:
        """The same, as the configurations of transformers call it."""
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.ffn_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": self.context,
        }
