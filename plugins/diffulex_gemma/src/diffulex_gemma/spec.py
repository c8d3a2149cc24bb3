"""What DiffusionGemma's text network looks like, as numbers; importing this imports no torch."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class LayerKind:
    """What the sliding layers, or the full ones, have in common.

    Attributes:
        window: width of the sliding window in tokens; None = full attention.
        num_kv_heads: key/value heads.
        head_dim: width of a head.
        rope_theta: base of the rotary frequencies.
        rope_pairs: pairs of a head's dimensions that are rotated; the others pass through.
        own_values: a projection of their own gives the values; otherwise keys and values start as one projection.
    """

    window: int | None
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rope_pairs: int
    own_values: bool


@attrs.frozen(kw_only=True)
class GemmaSpec:
    """Shape and options of the network.

    Attributes:
        vocab_size: rows of the embedding, which is the head too.
        hidden_size: width of the residual stream.
        ffn_size: width of each layer's dense MLP and of the self-conditioning's.
        num_heads: query heads.
        norm_eps: added to the mean square.
        softcap: bound of the logits.
        num_experts, experts_per_token, expert_size: the mixture beside the dense MLP.
        sliding, full: the two kinds of layers.
        full_layers: for each layer whether it is a full one.
        canvas_length: tokens that are denoised together.
    """

    vocab_size: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    norm_eps: float
    softcap: float
    num_experts: int
    experts_per_token: int
    expert_size: int
    sliding: LayerKind
    full: LayerKind
    full_layers: tuple[bool, ...]
    canvas_length: int

    @property
    def kinds(self) -> tuple[LayerKind, LayerKind]:
        """The layer kinds; a layer's index into them is 1 for a full one."""
        return self.sliding, self.full
