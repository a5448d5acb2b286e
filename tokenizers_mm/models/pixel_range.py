"""Normalisation of pixels: what the nets see of images in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PixelRange:
    """Nets see (p - mean) / std of pixels p in [0, 1], one number or one per channel; 0.5 and 0.5: those in [-1, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, image_BCHW: Tensor) -> Tensor:
        """What the nets see of images in [-1, 1]."""
        if self._same:
            return image_BCHW
        mean_C11, std_C11 = self._shaped(image_BCHW)
        return ((image_BCHW + 1) / 2 - mean_C11) / std_C11

    def restore(self, x_BCHW: Tensor) -> Tensor:
        """Images in about [-1, 1] of what the decoder gives: the inverse of `normalise`."""
        if self._same:
            return x_BCHW
        mean_C11, std_C11 = self._shaped(x_BCHW)
        return (x_BCHW * std_C11 + mean_C11) * 2 - 1

    @property
    def _same(self) -> bool:
        return set(self.mean) == set(self.std) == {0.5}

    def _shaped(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        return x_BCHW.new_tensor(self.mean)[:, None, None], x_BCHW.new_tensor(self.std)[:, None, None]
