"""Timestep embedding: a time as sines and cosines.

Denoising Diffusion Probabilistic Models (https://arxiv.org/abs/2006.11239), after the positions of
https://arxiv.org/abs/1706.03762.

Shape letters: B batch, T channels of the embedding, E width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["TimeEmbedding", "timestep_embedding"]


def timestep_embedding(t_B: Tensor, dim: int, *, scale: float = 1000.0) -> Tensor:
    """Cosines, then sines, [B, dim] float32, of times in [0, 1] at angular frequencies from `scale` to scale / 10000.

    At a scale of 1000 wavelengths are 1 / 160 to 60.
    """
    bands = dim // 2
    frequency = scale * torch.exp(-math.log(10000.0) * torch.arange(bands, device=t_B.device) / bands)
    angle = t_B[:, None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


class TimeEmbedding(nn.Module):
    """Times through `timestep_embedding` and an MLP: [B] -> [B, E]."""

    def __init__(self, width: int, dim: int = 128) -> None:
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t_B: Tensor) -> Tensor:
        """Vectors of times in [0, 1]."""
        x: Tensor = self.mlp(timestep_embedding(t_B, self.dim))
        return x
