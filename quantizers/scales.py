"""Grids from coarse to fine, and how vectors go from one to another.

Shape letters: B batch, N positions, D channels, h and w sides of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Side = int | Sequence[int]
Sides = tuple[int, int]
Resize = Literal["area", "bilinear", "bicubic"]


def checked_scales(scales: Sequence[Side]) -> tuple[Sides, ...]:
    """The sides (h, w) of every scale; `ValueError` unless each is at least 1 and none is larger than the last."""
    try:
        pairs = tuple((int(s), int(s)) if isinstance(s, int) else (int(s[0]), int(s[1])) for s in scales)
        fine = all(isinstance(s, int) or len(s) == 2 for s in scales)
    except (TypeError, ValueError, IndexError):
        pairs, fine = (), False
    if not fine or not pairs or any(not (1 <= h <= pairs[-1][0] and 1 <= w <= pairs[-1][1]) for h, w in pairs):
        raise ValueError(f"scales={scales!r}: expected sides or (h, w), each at least 1 and none larger than the last")
    return pairs


def as_map(x_BND: Tensor, sides: Sides) -> Tensor:
    """Positions in raster order as a map, [B, D, h, w]."""
    return x_BND.transpose(1, 2).reshape(x_BND.shape[0], x_BND.shape[2], *sides)


def as_raster(x_BDhw: Tensor) -> Tensor:
    """The inverse of `as_map`, [B, h w, D]."""
    return x_BDhw.flatten(2).transpose(1, 2)


def resized(x_BDhw: Tensor, sides: Sides, how: Resize) -> Tensor:
    """The map on other sides: by area means, or by interpolation between centres, without antialias."""
    if x_BDhw.shape[2:] == sides:
        return x_BDhw
    return F.interpolate(x_BDhw, sides, mode=how, align_corners=None if how == "area" else False)


def phi_index(scale: int, scales: int, convolutions: int) -> int:
    """Which of VAR's partially shared convolutions serves a scale: that whose tick is nearest to its relative depth.

    As in VAR's code, in float64: where two ticks are equally near, rounding decides, and weights depend on how.
    """
    margin = 1 / 3 / convolutions if convolutions == 4 else 1 / 2 / convolutions
    step = (1 - margin - margin) / max(convolutions - 1, 1)
    ticks = [i * step + margin for i in range(convolutions)]
    if convolutions > 1:
        ticks[-1] = 1 - margin
    depth = scale / max(scales - 1, 1)
    distances = [abs(tick - depth) for tick in ticks]
    return distances.index(min(distances))
