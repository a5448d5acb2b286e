"""Attention to another sequence, and to a whole sequence at once.

Attention Is All You Need (https://arxiv.org/abs/1706.03762); pooling with a learned query: Set Transformer
(https://arxiv.org/abs/1810.00825).

Shape letters: B batch, L positions that look, K positions that are looked at, H heads, D channels of a head, E width,
S width of what is looked at.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tokenizers_mm.blocks.attention import attend

__all__ = ["AttentionPool", "CrossAttention"]


class CrossAttention(nn.Module):
    """Positions of one sequence attend to those of another, of `source` channels (default: `width`)."""

    def __init__(self, width: int, heads: int, source: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width if source is None else source, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BLE: Tensor, source_BKS: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, L, E]; `mask` [L, K] or [B, L, K] is True where a position may look at one of the source."""
        k_BHKD, v_BHKD = (_split(part, self.heads) for part in self.key_value(source_BKS).chunk(2, -1))
        mixed_BHLD = attend(_split(self.query(x_BLE), self.heads), k_BHKD, v_BHKD, mask)
        out: Tensor = self.out(mixed_BHLD.transpose(1, 2).flatten(2))
        return out


class AttentionPool(nn.Module):
    """One learned query attends to all positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.norm = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BKE: Tensor) -> Tensor:
        """[B, K, E] -> [B, E]."""
        k_BHKD, v_BHKD = (_split(part, self.heads) for part in self.key_value(self.norm(x_BKE)).chunk(2, -1))
        q_BH1D = _split(self.query.to(k_BHKD.dtype).expand(len(x_BKE), 1, -1), self.heads)
        out_BE: Tensor = self.out(attend(q_BH1D, k_BHKD, v_BHKD).flatten(1))
        return out_BE


def _split(x_BLE: Tensor, heads: int) -> Tensor:
    """[B, L, E] -> [B, H, L, D]."""
    return x_BLE.view(*x_BLE.shape[:2], heads, -1).transpose(1, 2)
