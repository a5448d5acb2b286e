"""The encoder layer of heads and text encoders: torch's own, in one place.

It is the block of `tokenizers_mm.blocks.block` without rotary positions, modulation and normalised queries, and a test
holds the two equal. Torch's is kept for its parameter names, which saved tokenizers have (`self_attn.in_proj_weight`,
`linear1`), for the way its weights start, and for its fused kernel without gradients.
"""

from __future__ import annotations

from torch import nn

__all__ = ["encoder_layer"]


def encoder_layer(width: int, heads: int) -> nn.TransformerEncoderLayer:
    """Pre-norm layer [B, L, width] -> the same shape, with GELU and four times the width inside, without dropout."""
    return nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
