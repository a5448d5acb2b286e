"""JPEG and WebP on the same images, as curves over the rate: what an ordinary codec gives for the bits.

A file of one small image is mostly header, which would make any tokenizer look good. So images of up to 64 pixels a
side stand side by side in one file, which pays for one header and lets the codec use what neighbours have in common;
larger ones are a file each. Every byte counts.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from tokenizers_mm.measure import VARIANTS, Codec
from tokenizers_mm.report import Pixels

__all__ = ["CodecPoint", "at_rate", "codec_curve", "strided", "in_one_file", "evenly_spaced"]

_SMALL = 64
_QUALITIES: dict[Codec, tuple[int, ...]] = {
    "jpeg": (2, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 95),
    "webp": (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 97),
}
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CodecPoint:
    """All images at one quality: bits per pixel, PSNR in dB (the mean over images), and how to write the same."""

    bpp: float
    psnr: float
    quality: int
    options: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def codec_curve(images: Sequence[Pixels], codec: Codec) -> list[CodecPoint]:
    """Points (uint8 [H, W, 3] images in) that no cheaper one equals, from few bits to many; lossless ones left out."""
    points = []
    for options in VARIANTS[codec]:
        for quality in _QUALITIES[codec]:
            size, decoded = _written(images, codec, quality=quality, **options)
            rate = 8 * size / sum(pixels.shape[0] * pixels.shape[1] for pixels in images)
            points.append(CodecPoint(bpp=rate, psnr=_mean_psnr(images, decoded), quality=quality, options=options))
    kept: list[CodecPoint] = []
    for point in sorted((p for p in points if math.isfinite(p.psnr)), key=lambda point: (point.bpp, -point.psnr)):
        if not kept or point.psnr > kept[-1].psnr:
            kept.append(point)
    return kept


def at_rate(curve: Sequence[CodecPoint], bpp: float) -> float | None:
    """PSNR of a curve at a rate, straight between its points; None where it has no file that small, or ended before."""
    if not curve or not curve[0].bpp <= bpp <= curve[-1].bpp:
        return None
    return float(np.interp(bpp, [point.bpp for point in curve], [point.psnr for point in curve]))


def in_one_file(images: Sequence[Pixels]) -> bool:
    """Whether they stand side by side in one file: all small, and of one size."""
    return max(images[0].shape[:2]) <= _SMALL and len({pixels.shape for pixels in images}) == 1


def strided(items: Iterable[T], most: int) -> list[T]:
    """Every, every second, every fourth ... item from the first: as many as `most` (2 or more) allows, however many."""
    kept: list[T] = []
    stride = 1
    for number, item in enumerate(items):
        if number % stride:
            continue
        if len(kept) == most:
            kept, stride = kept[::2], 2 * stride
            if number % stride:
                continue
        kept.append(item)
    return kept


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """So many of them, at even distances, first and last included."""
    index = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[number] for number in index]


def _written(images: Sequence[Pixels], codec: Codec, **options: Any) -> tuple[int, list[Pixels]]:
    """Bytes of the file or files, and the images out of them."""
    pictures = [_side_by_side(images)] if in_one_file(images) else list(images)
    size, decoded = 0, []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, codec, **options)
        size += file.tell()
        decoded.append(np.asarray(Image.open(file).convert("RGB")))
    return size, _apart(decoded[0], images) if in_one_file(images) else decoded


def _side_by_side(images: Sequence[Pixels]) -> Pixels:
    """One picture, about square; places left over repeat the last image, which costs next to nothing."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    filled = [*images, *[images[-1]] * (rows * columns - len(images))]
    lines = [np.concatenate(filled[columns * row : columns * (row + 1)], axis=1) for row in range(rows)]
    return np.concatenate(lines)


def _apart(picture: Pixels, images: Sequence[Pixels]) -> list[Pixels]:
    height, width = images[0].shape[:2]
    columns = picture.shape[1] // width
    places = (divmod(number, columns) for number in range(len(images)))
    return [picture[row * height : (row + 1) * height, left * width : (left + 1) * width] for row, left in places]


def _mean_psnr(images: Sequence[Pixels], decoded: Sequence[Pixels]) -> float:
    pairs = zip(images, decoded, strict=True)
    errors = np.array([np.square(a.astype(np.float64) - b).mean() for a, b in pairs])
    with np.errstate(divide="ignore"):
        return float((10 * np.log10(255**2 / errors)).mean())
