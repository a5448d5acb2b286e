"""The transformer that the ViT nets are made of: pre-norm blocks, rotary positions in two dimensions, optional adaLN.

ViT (https://arxiv.org/abs/2010.11929), SwiGLU (https://arxiv.org/abs/2002.05202), query-key normalisation
(https://arxiv.org/abs/2302.05442), adaLN (https://arxiv.org/abs/2212.09748), axial rotary positions with a base of 100
(https://arxiv.org/abs/2403.13298). Positions count cells of the grid, so any image size works and neighbours look the
same at every size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tokenizers_mm.blocks import Attention, Block, Mlp, MlpKind, Norm, Transformer, normalisation, scaled, zero_linear

__all__ = ["GridTransformer", "TransformerConfig"]

_BASE = 100.0


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Size of one transformer.

    hidden  width inside the feed-forward layers; default 4 * width ("gelu"), 8/3 * width in multiples of 8 ("swiglu")
    norm    "layer": LayerNorm, for which torch has a fused kernel on CPUs too; "rms": RMSNorm
    """

    width: int = 384
    depth: int = 6
    heads: int = 6
    hidden: int | None = None
    mlp: MlpKind = "swiglu"
    norm: Norm = "layer"

    def __post_init__(self) -> None:
        """Refuse a width whose heads do not split into pairs of channels for rows and for columns."""
        if min(self.width, self.depth, self.heads, self.hidden or 1) < 1 or self.width % (4 * self.heads):
            raise ValueError(
                f"width={self.width}, depth={self.depth}, heads={self.heads}, hidden={self.hidden}: all at least 1, "
                "and width a multiple of 4 * heads"
            )

    @property
    def inside(self) -> int:
        """Width inside the feed-forward layers."""
        if self.hidden is not None:
            return self.hidden
        return 4 * self.width if self.mlp == "gelu" else 8 * -(-self.width // 3)


class GridTransformer(Transformer):
    """`depth` blocks and a last norm over positions (row, column) of a grid, (0, 0) for what has no place in it.

    adaptive  blocks are scaled, shifted and gated by a condition
    """

    def __init__(self, config: TransformerConfig, *, adaptive: bool = False) -> None:
        blocks = [_block(config, adaptive) for _ in range(config.depth)]
        super().__init__(blocks, _norm(config), head_dim=config.width // config.heads, base=_BASE)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear) and not name.endswith("modulation"):
                # What blocks add is smaller the more of them there are, so the sum keeps its size (GPT-2).
                depth = 2 * config.depth if name.endswith(".out") else 1
                scaled(layer, depth**-0.5)


def _block(config: TransformerConfig, adaptive: bool) -> Block:
    width = config.width
    attention, mlp = Attention(width, config.heads, qk_norm="rms"), Mlp(width, config.inside, config.mlp)
    attention.sharpness = nn.Parameter(torch.ones(config.heads, 1, 1))  # the shape that saved tokenizers have
    modulation = zero_linear(width, 6 * width) if adaptive else None
    return Block(_norm(config), attention, _norm(config), mlp, modulation)


def _norm(config: TransformerConfig) -> nn.Module:
    return normalisation(config.norm, config.width, eps=1e-6)
