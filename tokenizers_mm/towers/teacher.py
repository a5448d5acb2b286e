"""A tower as a teacher: beside a module that trains, not part of it; and its features, kept in memory.

Shape letters: B batch, C image channels, H and W pixels, N positions, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_mm.api import Tokenizer, TokenSpec
from tokenizers_mm.semantics import Semantics, semantics_of
from tokenizers_mm.towers.tower import Tower

__all__ = ["Teacher", "cached_semantics"]


class Teacher(nn.Module):
    """A tower kept out of its parent's `parameters()`, `state_dict()` and checkpoints; it follows `.to()`.

    Whoever trains against a teacher neither optimises, averages, synchronises nor saves it. Its name and the hash of
    its weights are what a checkpoint should record.
    """

    tower: Tower

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.__dict__["tower"] = tower
        self.name, self.weights_sha256 = tower.name, tower.weights_sha256

    @property
    def spec(self) -> TokenSpec:
        """Geometry of the features."""
        return self.tower.spec

    @property
    def pooled_dim(self) -> int:
        """Width of the pooled vector."""
        return self.tower.pooled_dim

    def forward(self, image_BCHW: Tensor) -> Semantics:
        """The tower's semantics of images in [-1, 1]; gradients reach the images."""
        return self.tower.semantics(image_BCHW)

    def semantics(self, image_BCHW: Tensor) -> Semantics:
        """The same."""
        return self.tower.semantics(image_BCHW)

    def extra_repr(self) -> str:
        """Name and the first digits of the hash."""
        return self.tower.extra_repr()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Teacher:
        self.tower._apply(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


@torch.no_grad()
def cached_semantics(
    tokenizer: Tokenizer | Teacher, batches: Iterable[Tensor], *, dtype: torch.dtype = torch.float32
) -> Semantics:
    """Features of every image of small, fixed data, computed once: image batches [B, C, H, W] to one `Semantics`.

    tokenizer  a tower, a teacher, or any other tokenizer (see `semantics_of`)
    dtype      that the features are kept in; bfloat16 halves the memory and costs three digits

    Features stay on the device of the tokenizer. Raises `ValueError` where there are no images, or where images of
    different sizes give different grids. Data that changes from epoch to epoch needs the teacher itself.
    """
    parts = [semantics_of(tokenizer, image_BCHW).to(dtype) for image_BCHW in batches]
    if not parts:
        raise ValueError("batches are empty: expected batches of images [B, C, H, W]")
    grids = sorted({part.grid for part in parts})
    if len(grids) > 1:
        raise ValueError(f"batches give grids {grids}: keep images of one size")
    patch_BND, pooled_BD = (torch.cat([getattr(p, name) for p in parts]) for name in ("patch_BND", "pooled_BD"))
    return Semantics(patch_BND, pooled_BD, grids[0])
