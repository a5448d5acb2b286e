"""Tiles along one axis: where they lie, and what each of them weighs at every position.

A blend in two dimensions is the product of the weights of both axes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Piece", "pieces", "starts", "weights_of"]


class Piece(NamedTuple):
    """One tile along one axis: where it lies in what the net reads, and in what it gives, and its weight there."""

    source: slice
    target: slice
    weight: Tensor


def pieces(length: int, tile: int, overlap: int, step_in: int, step_out: int, sharp: bool = False) -> list[Piece]:
    """Tiles along an axis of `length` positions, of step_in and step_out rows each."""
    tile = min(tile, length)
    corners = starts(length, tile, overlap)
    weights = weights_of([corner * step_out for corner in corners], tile * step_out, length * step_out, sharp)
    source, target = ([slice(at * step, (at + tile) * step) for at in corners] for step in (step_in, step_out))
    return [Piece(*piece) for piece in zip(source, target, weights, strict=True)]


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the fewest tiles that cover an axis with at least this overlap begin, evenly spread."""
    if length <= tile:
        return [0]
    gaps = math.ceil((length - tile) / (tile - overlap))
    return [i * (length - tile) // gaps for i in range(gaps + 1)]


def weights_of(corners: list[int], tile: int, length: int, sharp: bool) -> list[Tensor]:
    """Weight of each tile at each of its own positions along an axis, float32; over the tiles they sum to one exactly.

    From one tile to the next it passes linearly in the middle half of their overlap; `sharp`, all at its middle. A
    tile's weight is the difference of two such rises, the second nowhere above the first. Rises are multiples of
    2^-12: products of two weights are then exact in float32, and so are their sums.
    """
    position = torch.arange(length) + 0.5
    rises = [torch.ones(length)]
    for before, corner in pairwise(corners):
        overlap = before + tile - corner
        share = (position - corner - overlap / 2) / max(overlap / 2, 1e-3) + 0.5
        rises.append((share >= 0.5).float() if sharp else (share.clamp(0, 1) * 4096).round() / 4096)
    rises.append(torch.zeros(length))
    return [(rise - after)[at : at + tile] for at, (rise, after) in zip(corners, pairwise(rises), strict=True)]
