"""Reads what an image shows off the bottleneck's vectors, for tokenizers that train against text or a teacher.

UniTok (https://arxiv.org/abs/2502.20321) projects the mean of the quantised vectors; TokLIP
(https://arxiv.org/abs/2505.05422) and QLIP (https://arxiv.org/abs/2502.05178) put a transformer and attention pooling
on top. The text encoder that stands beside it, and the scale and bias of their logits, are saved with the tokenizer.

Shape letters: B batch, N positions, D channels of a vector, E width of the transformer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tokenizers_mm.blocks import AttentionPool, encoder_layer, sincos
from tokenizers_mm.semantics import Semantics
from tokenizers_mm.towers import TextConfig, build_text

__all__ = ["SemanticConfig", "SemanticHead"]

# Scale and bias that training starts from: CLIP (https://arxiv.org/abs/2103.00020), SigLIP
# (https://arxiv.org/abs/2303.15343).
_START: dict[str, tuple[float, float | None]] = {"info_nce": (1 / 0.07, None), "sigmoid": (10.0, -10.0)}
_MOST_SCALE = 100.0  # CLIP's limit


@dataclass(frozen=True, kw_only=True)
class SemanticConfig:
    """What reads features off a tokenizer's vectors.

    dim       channels of the features, the same for images and texts
    depth     transformer layers over the vectors; 0 has none, and then the vectors themselves are pooled (UniTok)
    width     of these layers (default: dim); heads  of their attention, and of attention pooling
    pool      how positions become one vector: their mean, or attention with one learned query
    text      options of the text encoder (`tokenizers_mm.towers.text`); None: images only
    contrast  the loss that scale and bias of the logits are for; softmax (InfoNCE) has no bias
    """

    dim: int = 128
    depth: int = 0
    width: int | None = None
    heads: int = 4
    pool: Literal["mean", "attention"] = "mean"
    text: TextConfig | None = None
    contrast: Literal["info_nce", "sigmoid"] = "info_nce"

    def __post_init__(self) -> None:
        """Refuse sizes below 1, and widths that heads and positions cannot divide."""
        width = self.dim if self.width is None else self.width
        if min(self.dim, width, self.heads) < 1 or self.depth < 0:
            raise ValueError(
                f"dim={self.dim}, depth={self.depth}, width={self.width}, heads={self.heads}: "
                "expected at least 1, and a depth of at least 0"
            )
        if self.width is not None and self.depth == 0:
            raise ValueError(
                f"width={self.width}: only transformer layers have it; leave it out, or say depth=1 or more"
            )
        if self.depth and width % math.lcm(4, self.heads):
            raise ValueError(f"width={width}, heads={self.heads}: expected a width that 4 and the heads divide")


class SemanticHead(nn.Module):
    """Vectors [B, N, D] of a bottleneck -> `Semantics`, and captions -> vectors of the same space.

    logit_scale  logarithm of what cosines are multiplied by, see `scale`; logit_bias  is added (sigmoid only)
    """

    def __init__(self, config: SemanticConfig, in_dim: int) -> None:
        super().__init__()
        self.config = config
        width = in_dim if config.depth == 0 else config.width or config.dim
        self.proj_in = nn.Linear(in_dim, width) if config.depth else nn.Identity()
        self.layers = nn.ModuleList(encoder_layer(width, config.heads) for _ in range(config.depth))
        self.pool = AttentionPool(width, _heads(width, config)) if config.pool == "attention" else None
        self.norm = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, config.dim)
        scale, bias = _START[config.contrast]
        self.text: nn.Module | None = None
        self.logit_scale: nn.Parameter | None = None
        self.logit_bias: nn.Parameter | None = None
        if config.text is not None:
            self.text = _built(config.text, config.dim)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
            self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))

    def forward(self, z_BND: Tensor, grid: tuple[int, ...]) -> Semantics:
        """Features of vectors [B, N, D] on a grid (rows, columns) or (n,); patches and pooled are in one space."""
        weight = self.proj_out.weight
        x_BNE = self.proj_in(z_BND if torch.is_autocast_enabled(z_BND.device.type) else z_BND.to(weight.dtype))
        if self.config.depth:
            x_BNE = x_BNE + sincos(grid, x_BNE.shape[-1]).to(x_BNE)
        for layer in self.layers:
            x_BNE = layer(x_BNE)
        pooled_BE = x_BNE.mean(1) if self.pool is None else self.pool(x_BNE)
        patch_BND, pooled_BD = (self.proj_out(self.norm(x)).to(z_BND.dtype) for x in (x_BNE, pooled_BE))
        return Semantics(patch_BND, pooled_BD, grid)

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Vectors [B, dim] of captions, not of unit length; `ValueError` where the head has no text encoder."""
        if self.text is None:
            raise ValueError('semantic.text: this tokenizer has no text encoder; give one, such as {"kind": "words"}')
        text_BD: Tensor = self.text(captions)
        return text_BD

    @property
    def scale(self) -> Tensor:
        """What cosines of images and texts are multiplied by, at most 100 as in CLIP."""
        if self.logit_scale is None:
            raise ValueError("semantic.text: without a text encoder there are no logits, and no scale of them")
        return self.logit_scale.exp().clamp(max=_MOST_SCALE)


def _built(config: TextConfig, dim: int) -> nn.Module:
    """The text encoder; one for a state dict (on "meta", as loading does) has memory, random weights, fetches none."""
    if torch.get_default_device().type != "meta":
        return build_text(config, dim)
    with torch.device("cpu"):
        return build_text(config, dim, random_init=True)


def _heads(width: int, config: SemanticConfig) -> int:
    """Heads of attention pooling: those asked for where they divide the width, else one (narrow bottlenecks)."""
    return config.heads if width % config.heads == 0 else 1
