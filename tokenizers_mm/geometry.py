"""Between the list of an image's positions and their map.

Shape letters: B batch, N positions, D channels, h and w rows and columns.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

__all__ = ["Grid", "as_map", "match_grid", "stacked", "unstacked"]

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


def match_grid(features_BND: Tensor, grid: tuple[Any, ...], target_grid: tuple[Any, ...]) -> Tensor:
    """Features of another grid (rows, columns): a side that shrinks is averaged over areas, one that grows is bilinear.

    Raises `ValueError` where there is no correspondence of places: a sequence (n,) fits only one of its own length.
    """
    if grid == target_grid:
        return features_BND
    match (*grid, *target_grid):
        case (int(h), int(w), int(rows), int(columns)) if len(grid) == 2:
            pass
        case _:
            raise ValueError(
                f"the grid is {grid}, wanted is {target_grid}: only (rows, columns) have places in an image, "
                "positions of a sequence do not; align pooled features (loss: pooled), or teach a 2-D grid"
            )
    if features_BND.shape[1] != h * w:
        raise ValueError(f"features_BND {tuple(features_BND.shape)} do not fill the grid {grid}")
    x_BDhw = features_BND.transpose(1, 2).reshape(len(features_BND), -1, h, w)
    smaller = min(h, rows), min(w, columns)
    if smaller != (h, w):
        x_BDhw = F.interpolate(x_BDhw, smaller, mode="area")
    if smaller != (rows, columns):
        x_BDhw = F.interpolate(x_BDhw, (rows, columns), mode="bilinear", align_corners=False)
    return x_BDhw.flatten(2).transpose(1, 2)
