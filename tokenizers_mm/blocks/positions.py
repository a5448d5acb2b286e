"""Where the cells of a grid are, as numbers and as sines.

Attention Is All You Need (https://arxiv.org/abs/1706.03762); for two axes as in https://arxiv.org/abs/2111.06377.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["grid_positions", "sincos"]


def grid_positions(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Row and column [rows * columns, 2] of every cell in raster order, counted from the middle of the grid."""
    row_h, column_w = (torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in (rows, columns))
    return torch.cartesian_prod(row_h, column_w)


def sincos(grid: tuple[int, ...], width: int) -> Tensor:
    """Sines and cosines [N, width] of where a position is; the axes of the grid share the channels."""
    each = width // (2 * len(grid))
    frequency = 10_000.0 ** (-torch.arange(each, dtype=torch.float64) / each)
    axes_N = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [axis_N.reshape(-1, 1) * frequency for axis_N in axes_N]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], -1).float()
