"""Patches: neighbours of an image, or of a grid of latents, joined into one position and taken apart again.

An Image is Worth 16x16 Words (https://arxiv.org/abs/2010.11929). Inside a patch of an image the channel changes
slowest, as in the weight of a convolution; inside a patch of latents it changes fastest, as in their sequence.

Shape letters: B batch, C channels of an image, H and W pixels, h and w rows and columns of patches, L = h * w,
E width, N positions, D channels of a latent.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_mm.blocks.linear import scaled

__all__ = ["PatchEmbed", "PatchUnembed", "patchify", "unpatchify"]

_FIRST_CONTRAST = 0.1  # deviation of decoded pixels before training: nearly grey, as good a guess as there is


class PatchEmbed(nn.Module):
    """Image [B, C, H, W] -> one vector [B, L, E] per patch."""

    def __init__(self, patch: int, image_channels: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.project = scaled(nn.Linear(image_channels * patch**2, width))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Both sides must be multiples of the patch."""
        out: Tensor = self.project(F.pixel_unshuffle(image_BCHW, self.patch).flatten(2).transpose(1, 2))
        return out


class PatchUnembed(nn.Module):
    """One vector [B, L, E] per patch -> image [B, C, H, W]; `smooth` adds a 3x3 convolution over the image."""

    def __init__(self, patch: int, image_channels: int, width: int, *, smooth: bool = False) -> None:
        super().__init__()
        self.patch = patch
        self.project = scaled(nn.Linear(width, image_channels * patch**2), _FIRST_CONTRAST)
        self.smooth = nn.Conv2d(image_channels, image_channels, 3, padding=1) if smooth else None
        if self.smooth is not None:
            nn.init.dirac_(self.smooth.weight)  # starts as no convolution at all
            nn.init.zeros_(cast(Tensor, self.smooth.bias))

    @property
    def last_layer(self) -> Tensor:
        """Weight next to the image."""
        return self.project.weight if self.smooth is None else self.smooth.weight

    def forward(self, x_BLE: Tensor, grid: tuple[int, int]) -> Tensor:
        """`grid` is rows and columns of patches."""
        patches_BChw = self.project(x_BLE).transpose(1, 2).unflatten(2, grid)
        image_BCHW = F.pixel_shuffle(patches_BChw, self.patch)
        return image_BCHW if self.smooth is None else self.smooth(image_BCHW)


def patchify(latents_BND: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Join patch x patch neighbours of a raster grid: [B, N, D] -> [B, N / patch^2, patch^2 * D]."""
    batch, _, dim = latents_BND.shape
    cells = latents_BND.reshape(batch, grid[0] // patch, patch, grid[1] // patch, patch, dim)
    return cells.transpose(2, 3).reshape(batch, -1, patch * patch * dim)


def unpatchify(patches_BND: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Inverse of `patchify`; `grid` is that of the latents."""
    batch, _, channels = patches_BND.shape
    cells = patches_BND.reshape(batch, grid[0] // patch, grid[1] // patch, patch, patch, -1)
    return cells.transpose(2, 3).reshape(batch, -1, channels // patch**2)
