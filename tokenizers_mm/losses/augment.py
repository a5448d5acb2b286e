"""DiffAugment: what a discriminator sees, changed at random so that gradients still pass
(https://arxiv.org/abs/2006.10738).

A discriminator that sees few images learns them by heart. Real and generated images are changed alike, by operations
through which gradients reach the generator. The randomness is an argument: equal numbers are equal changes, so a real
image and its reconstruction can be changed the same way, and a batch split into parts is changed as a whole one.

Shape letters: B batch, C channels, H and W pixels, D random numbers of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Augmentation", "augment", "draw"]

Augmentation = Literal["color", "translation", "cutout"]
_NUMBERS = 7  # brightness, saturation, contrast; translation and cutout in rows and columns
_SHIFT, _HOLE = 0.125, 0.5  # of the side, as published


def draw(count: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Random numbers [B, D] in [0, 1) for `augment`, one row for each of `count` images.

    generator  where they come from, on its own device; torch's global state by default
    """
    source = device if generator is None else generator.device
    return torch.rand(count, _NUMBERS, generator=generator, device=source).to(device)


def augment(image_BCHW: Tensor, uniform_BD: Tensor, policy: Sequence[Augmentation]) -> Tensor:
    """Change every image by its own random numbers; the same shape.

    image_BCHW  in [-1, 1], 0 is the grey that fills what moved in or was cut out; values may leave the range
    uniform_BD  from `draw`
    policy      which of these, always in this order. color: brightness +-0.5, saturation x 0..2, contrast x 0.5..1.5;
                translation: up to 1/8 of each side, in whole pixels; cutout: a rectangle of half of each side

    Raises `ValueError` on an unknown name, or numbers for another batch.
    """
    unknown = [name for name in policy if name not in get_args(Augmentation)]
    if unknown:
        raise ValueError(f"policy={list(policy)}: {unknown[0]!r} is none of {', '.join(get_args(Augmentation))}")
    if uniform_BD.shape != (len(image_BCHW), _NUMBERS):
        raise ValueError(
            f"uniform_BD has shape {tuple(uniform_BD.shape)}: expected {(len(image_BCHW), _NUMBERS)}; "
            "draw(len(image_BCHW), ...) gives such numbers"
        )
    if "color" in policy:
        image_BCHW = _color(image_BCHW, uniform_BD[:, :3])
    if "translation" in policy:
        image_BCHW = _translation(image_BCHW, uniform_BD[:, 3:5])
    if "cutout" in policy:
        image_BCHW = _cutout(image_BCHW, uniform_BD[:, 5:])
    return image_BCHW


def _color(image_BCHW: Tensor, uniform_B3: Tensor) -> Tensor:
    brightness, saturation, contrast = uniform_B3.to(image_BCHW.dtype)[:, :, None, None, None].unbind(1)
    image_BCHW = image_BCHW + (brightness - 0.5)
    grey_B1HW = image_BCHW.mean(1, keepdim=True)
    image_BCHW = grey_B1HW + (image_BCHW - grey_B1HW) * (2 * saturation)
    mean_B111 = image_BCHW.mean((1, 2, 3), keepdim=True)
    return mean_B111 + (image_BCHW - mean_B111) * (contrast + 0.5)


def _translation(image_BCHW: Tensor, uniform_B2: Tensor) -> Tensor:
    height, width = image_BCHW.shape[2:]
    reach = [int(side * _SHIFT + 0.5) for side in (height, width)]
    moved_B2 = [(uniform_B2[:, i] * (2 * r + 1)).long() - r for i, r in enumerate(reach)]
    padded = F.pad(image_BCHW, (reach[1], reach[1], reach[0], reach[0]))
    row_BH1, column_B1W = (
        torch.arange(side, device=image_BCHW.device) + (moved + r)[:, None]
        for side, moved, r in zip((height, width), moved_B2, reach, strict=True)
    )
    batch_B11 = torch.arange(len(image_BCHW), device=image_BCHW.device)[:, None, None]
    # Indexing three dimensions at once puts them first: [B, H, W, C].
    return padded.permute(0, 2, 3, 1)[batch_B11, row_BH1[:, :, None], column_B1W[:, None]].permute(0, 3, 1, 2)


def _cutout(image_BCHW: Tensor, uniform_B2: Tensor) -> Tensor:
    inside = []
    for i, side in enumerate(image_BCHW.shape[2:]):
        size = int(side * _HOLE + 0.5)
        # Centres lie anywhere in the image, so a hole may hang over the edge.
        start_B1 = (uniform_B2[:, i, None] * (side + 1 - size % 2)).long() - size // 2
        position = torch.arange(side, device=image_BCHW.device)
        inside.append((position >= start_B1) & (position < start_B1 + size))
    hole_B1HW = (inside[0][:, :, None] & inside[1][:, None])[:, None]
    return image_BCHW.masked_fill(hole_B1HW, 0.0)
