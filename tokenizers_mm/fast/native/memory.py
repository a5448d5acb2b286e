"""A memory pool for images: fresh memory costs about as much as the multiplications.

The first touch of a page that the system hands out is slow, and allocators return large blocks at once. So what one
layer let go serves the next, and the next pass; `release` gives back what is not in use.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_LEAST = 1 << 18  # floats; smaller tensors are left to the allocator
_free: dict[int, np.ndarray] = {}  # by identity, because taking one out must not be divisible between threads


def empty(shape: Sequence[int]) -> Tensor:
    """Uninitialised float32 tensor; its memory comes back here when the last tensor on it is gone."""
    count = math.prod(shape)
    if count < _LEAST:
        return torch.empty(tuple(shape))
    block = _taken(count)
    lease = block[:count]
    weakref.finalize(lease, _free.__setitem__, id(block), block).atexit = False
    return torch.from_numpy(lease).view(tuple(shape))


def empty_image(batch: int, channels: int, height: int, width: int) -> Tensor:
    """The same for an image [B, C, H, W], channels_last in memory."""
    return empty((batch, height, width, channels)).permute(0, 3, 1, 2)


def release() -> None:
    """Give the memory that no tensor uses back to the system."""
    _free.clear()


def _taken(count: int) -> np.ndarray:
    """The smallest free block that is large enough, or a new one instead of all the free ones, which are too small."""
    for key, block in sorted(_free.items(), key=lambda item: item[1].size):
        if block.size >= count and _free.pop(key, None) is not None:
            return block
    _free.clear()
    pages = mmap.mmap(-1, 4 * count)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # small pages cost several times as much to touch first
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.float32)
