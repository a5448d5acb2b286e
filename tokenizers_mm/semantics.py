"""What a tokenizer knows about an image: one vector per position, one for the whole.

Two optional members make a tokenizer semantic: `semantics(image_BCHW) -> Semantics`, and `text_features(captions)`,
vectors [B, D] of texts in the space of `pooled_BD`, which make zero-shot classification possible.

Shape letters: B batch, C image channels, H and W pixels, N positions, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenizers_mm.api import Tokenizer

__all__ = ["Semantics", "mean_semantics", "semantics_of"]


@dataclass(frozen=True, eq=False)
class Semantics:
    """Features of a batch of images.

    patch_BND  one vector per position; grid  (rows, columns) of the positions, or (n,) of a sequence
    pooled_BD  one vector per image, not of unit length; its width may differ from that of `patch_BND`
    """

    patch_BND: Tensor
    pooled_BD: Tensor
    grid: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse features that do not belong together."""
        patch, pooled, length = self.patch_BND, self.pooled_BD, 1
        for side in self.grid:
            length *= side
        if patch.ndim != 3 or pooled.ndim != 2 or len(patch) != len(pooled) or patch.shape[1] != length:
            raise ValueError(
                f"patch_BND {tuple(patch.shape)}, pooled_BD {tuple(pooled.shape)}, grid {self.grid}: expected "
                "[B, N, D], [B, D] of the same B, and a grid of N positions"
            )

    def __len__(self) -> int:
        return len(self.pooled_BD)

    def __getitem__(self, index: slice | Tensor | list[int]) -> Semantics:
        return Semantics(self.patch_BND[index], self.pooled_BD[index], self.grid)

    def to(self, target: torch.device | str | torch.dtype) -> Semantics:
        """Move to a device, or change the type."""
        return Semantics(self.patch_BND.to(target), self.pooled_BD.to(target), self.grid)


def semantics_of(tokenizer: Tokenizer | Any, image_BCHW: Tensor) -> Semantics:
    """The tokenizer's own semantics; without any, the vectors of its tokens and their mean over positions."""
    if hasattr(tokenizer, "semantics"):
        semantics: Semantics = tokenizer.semantics(image_BCHW)
        return semantics
    tokens = tokenizer.encode(image_BCHW)
    return mean_semantics(tokenizer.embed(tokens), tokens.grid)


def mean_semantics(z_BND: Tensor, grid: tuple[Any, ...]) -> Semantics:
    """Vectors as they are, and their mean over positions; scales become one sequence."""
    return Semantics(z_BND, z_BND.mean(1), (z_BND.shape[1],) if isinstance(grid[0], tuple) else grid)
