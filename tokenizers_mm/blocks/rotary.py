"""Rotary position embedding (RoPE) for positions with any number of axes.

RoFormer (https://arxiv.org/abs/2104.09864); axes that share the channels of a head: Rotary Position Embedding for
Vision Transformer (https://arxiv.org/abs/2403.13298).

Channels i and i + D / 2 are one pair. Weights made for neighbouring pairs (2i, 2i + 1) fit after the same permutation
of the rows of query and key projections, which changes no score.

Shape letters: L positions, K axes of a position, H heads, D channels of a head, ... anything, such as a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Rotation", "rotate", "rotation"]

Rotation = tuple[Tensor, Tensor]


def rotation(position_LK: Tensor, dim: int, base: float) -> Rotation:
    """Cosines and signed sines [..., L, 1, D] of the angles for positions [..., L, K], float32; the 1 is for heads.

    Each axis turns its share of the D / 2 pairs, the first axis the first of them, at frequencies from 1 down towards
    1 / base. A position of zeros turns nothing. Raises `ValueError` where the axes cannot share the pairs.
    """
    axes = position_LK.shape[-1]
    if dim % (2 * axes):
        raise ValueError(f"dim={dim}: {axes} axes of rotary positions need a multiple of {2 * axes} channels a head")
    pairs = dim // (2 * axes)
    frequency = base ** (-torch.arange(pairs, device=position_LK.device) / pairs)
    angle = (position_LK[..., None] * frequency).flatten(-2)[..., None, :]
    return torch.cat([angle.cos()] * 2, -1), torch.cat([-angle.sin(), angle.sin()], -1)


def rotate(x_LHD: Tensor, turns: Rotation) -> Tensor:
    """Turn the pairs of [..., L, H, D]; products of two of them depend on the distance of their positions only."""
    cos, sin = turns
    return torch.addcmul(x_LHD * cos, x_LHD.roll(x_LHD.shape[-1] // 2, -1), sin)
