"""An image folder as a source: files are decoded when drawn, those that cannot be are replaced by the next ones.

Shape letters: B batch, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from tokenizers_mm.data.images import ImageError, Pixels, centre_crop, find_images, read_image, resize_shorter
from tokenizers_mm.data.sources import Draw, Fetched, batch_of, signed
from tokenizers_mm.data.unreadable import ALLOWED_SHARE, TooManyUnreadable, Unreadable, check_share

__all__ = ["FolderSource", "ImageFolder"]


@dataclass(eq=False)
class FolderSource:
    """Image files of a folder, decoded when drawn; the shorter side is resized, then a square is cropped.

    crop            where the square is cut out
    flip            mirror left and right half of the time
    max_unreadable  share of the images that may be unreadable

    A draw of an unreadable image is a draw of the next readable one, in the order of their paths and with the same
    seed, so batches stay a function of the draws. Raises `ValueError` for a folder without images.
    """

    path: str | Path
    size: int
    crop: Literal["random", "centre"] = "random"
    flip: bool = True
    max_unreadable: float = ALLOWED_SHARE

    def __post_init__(self) -> None:
        """Find the files; refuse sizes, crops and shares that mean nothing."""
        if self.size < 1 or self.crop not in ("random", "centre"):
            raise ValueError(f"size={self.size}, crop={self.crop!r}: expected size >= 1 and crop random or centre")
        check_share("max_unreadable", self.max_unreadable)
        self.files = find_images(self.path)
        self.keys = [file.relative_to(self.path).as_posix() for file in self.files]
        self.image_size = (self.size, self.size)
        self.fixed = self.crop == "centre" and not self.flip
        self._refused: dict[int, tuple[str, str]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def refuse(self, index: int, stage: str, reason: str) -> None:
        """Treat an image as unreadable from now on: what belongs beside it is missing."""
        self._refused[index] = stage, reason

    def fetch(self, draws: Sequence[Draw]) -> Fetched:
        """A batch with the draws that it shows, and the images that could not be read."""
        bad = Unreadable(self.path, len(self), self.max_unreadable)
        try:
            shown = [self._readable(draw, bad) for draw in draws]
        except TooManyUnreadable:
            return Fetched(None, (), bad.errors)
        return Fetched(signed(np.stack([image for _, image in shown])), [draw for draw, _ in shown], bad.errors)

    def _readable(self, draw: Draw, bad: Unreadable) -> tuple[Draw, Pixels]:
        for step in range(len(self)):
            index = (draw.index + step) % len(self)
            try:
                return Draw(index, draw.seed), self._image(index, draw.seed)
            except ImageError as error:
                bad.add(self.keys[index], error)
        bad.require_one()
        raise AssertionError("an image that cannot be read is in the ledger")

    def _image(self, index: int, seed: int) -> Pixels:
        if index in self._refused:
            raise ImageError(str(self.files[index]), *self._refused[index])
        image = read_image(self.files[index], lambda pixels: resize_shorter(pixels, self.size))
        rng = np.random.default_rng(seed)
        if self.crop == "centre":
            image = centre_crop(image, self.size, self.size)
        else:
            top, left = (int(rng.integers(0, have - self.size + 1)) for have in image.shape[:2])
            image = image[top : top + self.size, left : left + self.size]
        return image[:, ::-1] if self.flip and rng.random() < 0.5 else image


class ImageFolder(FolderSource):
    """A folder whose batches are images alone, see `FolderSource`."""

    def batch(self, draws: Sequence[Draw]) -> Tensor:
        """Float [B, 3, size, size] in [-1, 1]; warns of unreadable images, raises `TooManyUnreadable`."""
        image_BCHW: Tensor = batch_of(self, draws)
        return image_BCHW
