"""Tile sizes of the Triton searches: one explicit table by channels and compute capability, no tuning at run time.

A program compares `rows` vectors with `codes` codebook rows at a time, `channels` channels at a time. Where one block
of channels holds all of D, the vectors are loaded and split once. The limits are registers (255 a thread), shared
memory (163 KiB on sm_80, 99 KiB on sm_86 and sm_89, 227 KiB on sm_90) and, for small D, the argmin, which is why more
than one program should fit a multiprocessor (`resident`).
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Literal, NamedTuple

import torch

Precision = Literal["tf32x3", "bf16"]


class Tile(NamedTuple):
    """Sizes of one program, and how many of them a multiprocessor holds at a time."""

    rows: int
    codes: int
    channels: int
    warps: int
    stages: int
    resident: int


class Card(NamedTuple):
    """What the table and the grid need to know of a device."""

    hopper: bool
    multiprocessors: int


# Largest D of a line: its tile. Only the last line splits D. wgmma (sm_90) takes its operands from shared memory,
# mma.sync (everything else) from registers: there, 128 x 128 in float32 spills, and so do 64 channels at once.
_HOPPER: dict[Precision, list[tuple[int | None, Tile]]] = {
    "tf32x3": [
        (8, Tile(128, 64, 8, 4, 3, 4)),
        (16, Tile(128, 64, 16, 8, 3, 2)),
        (32, Tile(128, 64, 32, 8, 3, 2)),
        (64, Tile(128, 64, 64, 8, 2, 1)),
        (None, Tile(128, 128, 32, 8, 3, 1)),
    ],
    "bf16": [
        (16, Tile(128, 64, 16, 8, 3, 3)),
        (32, Tile(128, 64, 32, 8, 3, 3)),
        (64, Tile(128, 64, 64, 8, 3, 3)),
        (None, Tile(128, 128, 64, 8, 3, 1)),
    ],
}
_OTHER: dict[Precision, list[tuple[int | None, Tile]]] = {
    "tf32x3": [
        (8, Tile(128, 64, 8, 4, 3, 4)),
        (16, Tile(128, 64, 16, 8, 3, 2)),
        (32, Tile(128, 64, 32, 8, 3, 2)),
        (None, Tile(128, 64, 32, 8, 3, 1)),
    ],
    "bf16": [
        (16, Tile(128, 64, 16, 8, 3, 3)),
        (32, Tile(128, 64, 32, 8, 3, 2)),
        (64, Tile(128, 64, 64, 8, 3, 2)),
        (None, Tile(128, 128, 64, 8, 3, 1)),
    ],
}


_RESIDUAL_HOPPER: list[tuple[int | None, Tile]] = [
    (8, Tile(128, 64, 8, 4, 3, 3)),
    (16, Tile(128, 64, 16, 8, 3, 2)),
    (32, Tile(128, 64, 32, 8, 3, 1)),
    (64, Tile(128, 64, 64, 8, 2, 1)),
    (None, Tile(128, 128, 32, 8, 3, 1)),
]
_RESIDUAL_OTHER: list[tuple[int | None, Tile]] = [
    (8, Tile(128, 64, 8, 4, 3, 3)),
    (16, Tile(128, 64, 16, 8, 3, 1)),
    (32, Tile(128, 32, 32, 8, 3, 1)),
    (64, Tile(128, 32, 64, 8, 2, 1)),
    (None, Tile(64, 128, 32, 8, 3, 1)),
]


def tile_of(dim: int, hopper: bool, precision: Precision = "tf32x3") -> Tile:
    """Tile of a search over vectors of `dim` channels."""
    return _line((_HOPPER if hopper else _OTHER)[precision], dim)


def residual_tile_of(dim: int, hopper: bool) -> Tile:
    """Tile of a residual encode, which also has the residual and the sum to keep."""
    return _line(_RESIDUAL_HOPPER if hopper else _RESIDUAL_OTHER, dim)


def _line(table: list[tuple[int | None, Tile]], dim: int) -> Tile:
    return next(tile for most, tile in table if most is None or dim <= most)


def card(device: torch.device) -> Card:
    """The device's entry; a CPU (only Triton's interpreter runs there) counts as a small sm_80."""
    if device.type != "cuda":
        return Card(hopper=False, multiprocessors=2)
    return _card(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _card(index: int) -> Card:
    properties = torch.cuda.get_device_properties(index)
    if properties.major < 8:
        raise ValueError(
            f"{properties.name} has compute capability {properties.major}.{properties.minor}: "
            'the Triton kernels expect at least 8.0; use quantizers.kernels.using("torch")'
        )
    return Card(properties.major == 9, properties.multi_processor_count)


@lru_cache(maxsize=1024)
def splits_of(blocks: int, tiles: int, slots: int) -> int:
    """How many programs share the codebook of one block of rows, so that few rows still fill the device.

    blocks  blocks of rows;  tiles  codebook tiles to go through;  slots  programs that run at a time

    The time, in tiles, is the number of rounds times the tiles of one program plus what starting it costs.
    """
    most = min(tiles, 32)
    return min(range(1, most + 1), key=lambda s: (-(-blocks * s // slots) * (-(-tiles // s) + 2), s))
