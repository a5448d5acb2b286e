"""Random crops of a few photographs, recoloured and rescaled, as a source of any number of images.

Shape letters: C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tokenizers_mm.data.images import Pixels
from tokenizers_mm.data.sources import Draw

__all__ = ["RandomCrops"]

Floats = NDArray[np.float32]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_UPSCALE_SHARE = 0.3


class RandomCrops:
    """Random square crops of a few photographs; every photograph is equally likely, whatever its size.

    photos           uint8 [H, W, 3] each, at least crop x crop pixels
    crop             side of a crop in pixels
    draws_per_epoch  what `len` says; a crop depends on `Draw.seed` only
    flip             mirror left and right half of the time
    colour           permute channels, scale saturation and contrast, shift brightness, and invert now and then: few
                     photographs show few colours, and a tokenizer that saw only those fails on others
    max_downscale    average blocks of 1..max_downscale pixels a side, so that coarser detail is seen too
    max_upscale      enlarge three crops in ten 2..max_upscale times, so that smooth areas are seen too
    """

    fixed = False

    def __init__(
        self,
        photos: Sequence[Pixels],
        crop: int,
        draws_per_epoch: int = 10_000,
        flip: bool = True,
        colour: bool = True,
        max_downscale: int = 1,
        max_upscale: int = 1,
    ) -> None:
        if not photos or min(crop, draws_per_epoch, max_downscale, max_upscale) < 1:
            raise ValueError(
                f"{len(photos)} photos, crop={crop}, draws_per_epoch={draws_per_epoch}, max_downscale={max_downscale}, "
                f"max_upscale={max_upscale}: each must be at least 1"
            )
        for number, photo in enumerate(photos):
            if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or min(photo.shape[:2]) < crop:
                raise ValueError(
                    f"photo {number} is {photo.dtype} {photo.shape}: expected uint8 [H, W, 3], sides >= crop={crop}"
                )
        self.photos, self.crop, self.draws_per_epoch = list(photos), crop, draws_per_epoch
        self.flip, self.colour = flip, colour
        self.max_downscale, self.max_upscale = max_downscale, max_upscale

    def __len__(self) -> int:
        return self.draws_per_epoch

    def batch(self, draws: Sequence[Draw]) -> Tensor:
        """Float [B, 3, crop, crop] in [-1, 1]."""
        crops = np.empty((len(draws), 3, self.crop, self.crop), np.float32)
        for out, draw in zip(crops, draws, strict=True):
            out[:] = self._crop(np.random.default_rng(draw.seed))
        return torch.from_numpy(crops)

    def _crop(self, rng: np.random.Generator) -> Floats:
        photo = self.photos[int(rng.integers(len(self.photos)))]
        if self.max_upscale > 1 and rng.random() < _UPSCALE_SHARE:
            side = -(-self.crop // int(rng.integers(2, self.max_upscale + 1)))
        else:
            side = self.crop * int(rng.integers(1, min(self.max_downscale, min(photo.shape[:2]) // self.crop) + 1))
        top, left = (int(rng.integers(0, have - side + 1)) for have in photo.shape[:2])
        window = photo[top : top + side, left : left + side]
        if side > self.crop:
            window = np.asarray(Image.fromarray(window).reduce(side // self.crop))
        elif side < self.crop:
            window = np.asarray(Image.fromarray(window).resize((self.crop, self.crop), Image.Resampling.BILINEAR))
        if self.flip and rng.random() < 0.5:
            window = window[:, ::-1]
        pixels: Floats = window.reshape(-1, 3).astype(np.float32) / np.float32(127.5) - np.float32(1)
        if self.colour:
            matrix, shift = _recolour(rng)
            pixels = np.clip(pixels @ matrix + shift, -1, 1)
        return pixels.T.reshape(3, self.crop, self.crop)


def _recolour(rng: np.random.Generator) -> tuple[Floats, np.float32]:
    """A random colour change as one affine map of [-1, 1] pixels, row vectors times the 3 x 3 matrix plus the shift."""
    saturation, contrast = rng.uniform(0.3, 1.6), rng.uniform(0.7, 1.25)
    sign = -1.0 if rng.random() < 0.1 else 1.0
    permute = np.eye(3, dtype=np.float32)[rng.permutation(3)]
    saturate = saturation * np.eye(3) + (1 - saturation) * _LUMA[:, None]
    return (sign * contrast * permute @ saturate).astype(np.float32), np.float32(rng.uniform(-0.2, 0.2))
