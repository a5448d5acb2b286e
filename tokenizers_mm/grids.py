"""Between the list of an image's positions and their map.

Shape letters: B batch, N positions, D channels, h and w rows and columns.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, ...]  # (rows, columns), or (tokens,) of a one-dimensional tokenizer


def as_map(z_BND: Tensor, grid: Grid) -> Tensor:
    """[B, N, D] in raster order to [B, D, h, w]; positions without a place become one row."""
    rows, columns = grid if len(grid) == 2 else (1, *grid)
    return z_BND.transpose(1, 2).reshape(z_BND.shape[0], z_BND.shape[2], rows, columns)


def stacked(z_BND: Tensor, grid: Grid, patch: int) -> tuple[Tensor, Grid]:
    """The channels of patch x patch positions as those of one, and the grid of these."""
    if patch == 1:
        return z_BND, grid
    z_BDhw = F.pixel_unshuffle(as_map(z_BND, grid), patch)
    return z_BDhw.flatten(2).transpose(1, 2), tuple(z_BDhw.shape[2:])


def unstacked(z_BND: Tensor, grid: Grid, patch: int) -> tuple[Tensor, Grid]:
    """The inverse of `stacked`."""
    if patch == 1:
        return z_BND, grid
    z_BDhw = F.pixel_shuffle(as_map(z_BND, grid), patch)
    return z_BDhw.flatten(2).transpose(1, 2), tuple(z_BDhw.shape[2:])
