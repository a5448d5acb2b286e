"""Grids of positions, and the way between the list of an image's positions and their map.

Shape letters: B batch, N positions, D channels, h and w rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

__all__ = ["FeatureGrid", "Grid", "as_grid", "as_map", "match_grid", "positions", "single_grids"]

FeatureGrid = tuple[int, ...]  # of one feature map: (rows, columns), or (tokens,) of a one-dimensional tokenizer
Grid = FeatureGrid | tuple[tuple[int, int], ...]  # of one image's tokens: one grid, or several, one after another


def as_grid(grid: Sequence[Any]) -> Grid:
    """Lists (as JSON gives them) become tuples."""
    if any(isinstance(side, Sequence) for side in grid):
        return tuple((int(h), int(w)) for h, w in grid)
    return tuple(int(side) for side in grid)


def single_grids(grid: Grid) -> tuple[FeatureGrid, ...]:
    """The grids that follow each other in one: those of all scales or parts, or the only one."""
    return cast(tuple[FeatureGrid, ...], grid if isinstance(grid[0], tuple) else (grid,))


def positions(grid: Grid) -> int:
    """Positions of all grids together."""
    return sum(math.prod(one) for one in single_grids(grid))


def as_map(z_BND: Tensor, grid: FeatureGrid) -> Tensor:
    """[B, N, D] in raster order to [B, D, h, w]; positions without a place become one row."""
    rows, columns = grid if len(grid) == 2 else (1, *grid)
    return z_BND.transpose(1, 2).reshape(z_BND.shape[0], z_BND.shape[2], rows, columns)


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
