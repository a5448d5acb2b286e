"""Nested tokens: any prefix of them decodes, because in training the last ones are hidden from the decoder.

Nested dropout (https://arxiv.org/abs/1402.0915), of image tokens in FlexTok (https://arxiv.org/abs/2502.13967). A token
that is hidden, or that a prefix lacks, is the learned mask token.

Shape letters: B batch, N positions, D channels of a vector.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tokenizers_mm.models.vectors import Vectors


class PrefixOptions(Protocol):
    """Which prefixes are trained: see `QueryConfig`."""

    @property
    def prefixes(self) -> str:
        """Lengths that are drawn."""

    @property
    def whole(self) -> float:
        """Share of the images that keep all tokens."""


def prefix_lengths(count: int, tokens: int, prefixes: str, whole: float = 0.0) -> Tensor:
    """How many tokens stay [count], 1..tokens, drawn with torch's global generator."""
    lengths = torch.arange(1, tokens + 1)
    if prefixes == "powers":
        lengths = torch.tensor([2**i for i in range(tokens.bit_length()) if 2**i < tokens] + [tokens])
    drawn = lengths[torch.randint(len(lengths), (count,))]
    return torch.where(torch.rand(count) < whole, tokens, drawn) if whole else drawn


def hide_last(vectors: Vectors, mask_token_D: Tensor, options: PrefixOptions) -> Vectors:
    """Vectors of which every image keeps a prefix, of a length drawn with torch's global generator."""
    z_BND, (count,) = vectors
    kept_B = prefix_lengths(len(z_BND), count, options.prefixes, options.whole).to(z_BND.device)
    hidden_BN = torch.arange(count, device=z_BND.device) >= kept_B[:, None]
    return Vectors(torch.where(hidden_BN[..., None], mask_token_D.to(z_BND.dtype), z_BND), vectors.grid)


def fill_up(vectors: Vectors, mask_token_D: Tensor, count: int) -> Vectors:
    """All `count` vectors, from those of a prefix."""
    z_BND, (given,) = vectors
    if given == count:
        return vectors
    mask_BND = mask_token_D.to(z_BND.dtype).expand(len(z_BND), count - given, -1)
    return Vectors(torch.cat([z_BND, mask_BND], 1), (count,))
