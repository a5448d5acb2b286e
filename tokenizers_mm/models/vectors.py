"""What passes between a net and the bottleneck: vectors, and how they lie.

Shape letters: B batch, N positions, D channels, h and w rows and columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from tokenizers_mm.api import TokenSpec
from tokenizers_mm.geometry import FeatureGrid, Grid, as_map, positions, single_grids

__all__ = ["Vectors", "decodable"]


class Vectors(NamedTuple):
    """Vectors [B, N, D] of a batch of images.

    grid  (rows, columns) in raster order, or (n,) of positions without a place
    """

    z_BND: Tensor
    grid: FeatureGrid

    @classmethod
    def of_map(cls, z_BDhw: Tensor) -> Vectors:
        """Those of a map, in raster order."""
        return cls(z_BDhw.flatten(2).transpose(1, 2), tuple(z_BDhw.shape[2:]))

    def as_map(self) -> Tensor:
        """[B, D, h, w]; positions without a place become one row."""
        return as_map(self.z_BND, self.grid)

    def stacked(self, patch: int) -> Vectors:
        """The channels of patch x patch positions as those of one, in the order channel, row, column."""
        return self if patch == 1 else Vectors.of_map(F.pixel_unshuffle(self.as_map(), patch))

    def unstacked(self, patch: int) -> Vectors:
        """The inverse of `stacked`."""
        return self if patch == 1 else Vectors.of_map(F.pixel_shuffle(self.as_map(), patch))


def decodable(grid: Grid, spec: TokenSpec) -> Grid:
    """The grid, if a tokenizer decodes tokens on it: any raster, any prefix of nested tokens, else the spec's own.

    Raises `ValueError` saying which it takes.
    """
    single = single_grids(grid) == (grid,)
    match spec.layout:
        case "raster":
            fits, takes = single and len(grid) == 2, "(rows, columns)"
        case "nested":
            fits, takes = single and len(grid) == 1 and 1 <= positions(grid) <= spec.length, f"(1,) to {spec.grid}"
        case _:
            fits, takes = grid == spec.grid, str(spec.grid)
    if not fits:
        raise ValueError(f"grid={grid}: this tokenizer decodes {takes}")
    return grid
