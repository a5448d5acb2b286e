"""The transformer that the ViT nets are made of: pre-norm blocks, rotary positions in two dimensions, optional adaLN.

ViT (https://arxiv.org/abs/2010.11929), SwiGLU (https://arxiv.org/abs/2002.05202), query-key normalisation
(https://arxiv.org/abs/2302.05442), adaLN (https://arxiv.org/abs/2212.09748), axial rotary positions with a base of 100
(https://arxiv.org/abs/2403.13298). Positions count cells of the grid, so any image size works and neighbours look the
same at every size.

Shape letters: B batch, L positions, H heads, D channels of a head, E width, h and w rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["layer", "rms"]
Mlp = Literal["swiglu", "gelu"]
_BASE = 100.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of one transformer.

    hidden  width inside the feed-forward layers; default 4 * width ("gelu"), 8/3 * width in multiples of 8 ("swiglu")
    norm    "layer": LayerNorm, for which torch has a fused kernel on CPUs too; "rms": RMSNorm
    """

    width: int = 384
    depth: int = 6
    heads: int = 6
    hidden: int | None = None
    mlp: Mlp = "swiglu"
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


def grid_positions(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Row and column [rows * columns, 2] of every cell in raster order, counted from the middle of the grid."""
    row_h, column_w = (torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in (rows, columns))
    return torch.cartesian_prod(row_h, column_w)


def rotation(position_L2: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines [L, D] of the rotary angles: the first half of the pairs turns with the row, the other
    half with the column. A position of (0, 0) turns nothing.
    """
    pairs = dim // 4
    frequency = _BASE ** (-torch.arange(pairs, device=position_L2.device, dtype=torch.float32) / pairs)
    angle_LP = (position_L2[:, :, None] * frequency).flatten(1)
    return torch.cat([angle_LP.cos()] * 2, -1), torch.cat([-angle_LP.sin(), angle_LP.sin()], -1)


def rotate(x_BHLD: Tensor, cos_LD: Tensor, sin_LD: Tensor) -> Tensor:
    """Turn the pairs (i, i + D / 2); products of two turned vectors depend on the distance of their positions only."""
    return torch.addcmul(x_BHLD * cos_LD, x_BHLD.roll(x_BHLD.shape[-1] // 2, -1), sin_LD)


def normalisation(norm: Norm, width: int) -> nn.Module:
    """The normalisation over the channels of each position."""
    return nn.LayerNorm(width, eps=1e-6) if norm == "layer" else nn.RMSNorm(width, eps=1e-6)


class Attention(nn.Module):
    """Multi-head self-attention with queries and keys of unit mean square, sharpened by one number a head."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.sharpness = nn.Parameter(torch.ones(size.heads, 1, 1))
        self.out = nn.Linear(size.width, size.width)

    def forward(self, x_BLE: Tensor, turns: tuple[Tensor, Tensor], mask_LL: Tensor | None) -> Tensor:
        """[B, L, E] -> the same shape; `mask_LL` is True where a row may look at a column."""
        batch, length, width = x_BLE.shape
        qkv_3BHLD = self.qkv(x_BLE).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        cos_LD, sin_LD = (x.to(qkv_3BHLD.dtype) for x in turns)
        q_BHLD, k_BHLD = (rotate(F.rms_norm(x, x.shape[-1:]), cos_LD, sin_LD) for x in qkv_3BHLD[:2])
        # Under autocast the products of weights are half-precision and the rest is not.
        value_BHLD = qkv_3BHLD[2]
        q_BHLD, k_BHLD = (q_BHLD * self.sharpness).to(value_BHLD.dtype), k_BHLD.to(value_BHLD.dtype)
        mixed_BHLD = F.scaled_dot_product_attention(q_BHLD, k_BHLD, value_BHLD, attn_mask=mask_LL)
        out: Tensor = self.out(mixed_BHLD.transpose(1, 2).reshape(x_BLE.shape))
        return out


class FeedForward(nn.Module):
    """Two linear layers with GELU between, or SwiGLU, whose first layer gives gates as well."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gated = size.mlp == "swiglu"
        self.up = nn.Linear(size.width, size.inside * (2 if self.gated else 1))
        self.out = nn.Linear(size.inside, size.width)

    def forward(self, x_BLE: Tensor) -> Tensor:
        """[B, L, E] -> the same shape."""
        h_BLI = self.up(x_BLE)
        if self.gated:
            gate_BLI, h_BLI = h_BLI.chunk(2, -1)
            h_BLI = F.silu(gate_BLI) * h_BLI
        else:
            h_BLI = F.gelu(h_BLI)
        out: Tensor = self.out(h_BLI)
        return out


class Block(nn.Module):
    """Attention and feed-forward, each pre-normed and added; `adaptive` ones are scaled, shifted and gated."""

    def __init__(self, size: Size, adaptive: bool) -> None:
        super().__init__()
        self.norm_attention, self.attention = normalisation(size.norm, size.width), Attention(size)
        self.norm_mlp, self.mlp = normalisation(size.norm, size.width), FeedForward(size)
        if adaptive:
            self.modulation = zero_linear(size.width, 6 * size.width)

    def forward(
        self, x_BLE: Tensor, turns: tuple[Tensor, Tensor], mask_LL: Tensor | None, condition_BE: Tensor | None
    ) -> Tensor:
        """[B, L, E] -> the same shape."""
        if condition_BE is None:
            x_BLE = x_BLE + self.attention(self.norm_attention(x_BLE), turns, mask_LL)
            out_BLE: Tensor = x_BLE + self.mlp(self.norm_mlp(x_BLE))
            return out_BLE
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = self.modulation(condition_BE)[:, None].chunk(6, -1)
        h_BLE = self.norm_attention(x_BLE) * (1 + scale_a) + shift_a
        x_BLE = x_BLE + (1 + gate_a) * self.attention(h_BLE, turns, mask_LL)
        h_BLE = self.norm_mlp(x_BLE) * (1 + scale_m) + shift_m
        out_BLE = x_BLE + (1 + gate_m) * self.mlp(h_BLE)
        return out_BLE


class Transformer(nn.Module):
    """`depth` blocks and a last norm: [B, L, E] -> the same shape."""

    def __init__(self, size: Size, *, adaptive: bool = False) -> None:
        super().__init__()
        self.size = size
        self.blocks = nn.ModuleList(Block(size, adaptive) for _ in range(size.depth))
        self.norm = normalisation(size.norm, size.width)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear) and not name.endswith("modulation"):
                # What blocks add is smaller the more of them there are, so the sum keeps its size (GPT-2).
                depth = 2 * size.depth if name.endswith(".out") else 1
                scaled(layer, depth**-0.5)

    def forward(
        self,
        x_BLE: Tensor,
        position_L2: Tensor,
        mask_LL: Tensor | None = None,
        condition_BE: Tensor | None = None,
    ) -> Tensor:
        """Run all positions.

        position_L2   row and column of every position, of (0, 0) where it has none
        mask_LL       True where position (row) may look at position (column); default: everywhere
        condition_BE  one vector per example, for an adaptive transformer
        """
        turns = rotation(position_L2, self.size.width // self.size.heads)
        for block in self.blocks:
            x_BLE = block(x_BLE, turns, mask_LL, condition_BE)
        out: Tensor = self.norm(x_BLE)
        return out


def scaled(layer: nn.Linear, gain: float = 1.0) -> nn.Linear:
    """Weights that keep the size of what comes in, times `gain`, and no bias; the layer itself."""
    nn.init.normal_(layer.weight, std=gain * layer.in_features**-0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
