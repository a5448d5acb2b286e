"""Rate-distortion curves of JPEG and WebP on a set of images: what an ordinary codec gives for the bits.

A file of one small image is mostly header, which would make any tokenizer look good. So small images of one size stand
side by side in one file, which pays for one header and lets the codec use what neighbours have in common: the strictest
baseline of its kind. Larger ones are a file each. Every byte counts.

Images are uint8 [H, W, 3].
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from tokenizers_mm.data import Pixels
from tokenizers_mm.measure.codecs import VARIANTS, Codec, pixel_psnr

__all__ = [
    "CodecPoint",
    "codec_curve",
    "in_one_file",
    "mean_psnr",
    "pareto_front",
    "psnr_at_rate",
    "tile",
    "untile",
    "write_images",
]

T = TypeVar("T")

_SMALL = 64  # pixels a side
_QUALITIES: dict[Codec, Sequence[int]] = {
    "jpeg": (2, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 95),
    "webp": (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 97),
}


@dataclass(frozen=True, kw_only=True)
class CodecPoint:
    """All images at one quality.

    bpp      bits per pixel
    psnr     dB, the mean over images
    quality  and options: what to pass to Pillow to get the same
    """

    bpp: float
    psnr: float
    quality: int
    options: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def codec_curve(
    images: Sequence[Pixels], codec: Codec, qualities: Sequence[int] | None = None, *, below: float = math.inf
) -> list[CodecPoint]:
    """The Pareto front of a codec's variants and qualities, from few bits to many; lossless files are left out.

    qualities  in rising order; default: a dozen over the whole range
    below      bits per pixel; larger files are left out
    """
    together, points = in_one_file(images), []
    for options in VARIANTS[codec]:
        for quality in _QUALITIES[codec] if qualities is None else qualities:
            size, decoded = write_images(images, codec, together=together, quality=quality, **options)
            rate = 8 * size / sum(pixels.shape[0] * pixels.shape[1] for pixels in images)
            if rate > below:
                break
            psnr = mean_psnr(images, decoded)
            points.append(CodecPoint(bpp=rate, psnr=psnr, quality=quality, options=options))
    return pareto_front((p for p in points if math.isfinite(p.psnr)), lambda point: (point.bpp, point.psnr))


def psnr_at_rate(curve: Sequence[CodecPoint], bpp: float) -> float | None:
    """PSNR of a curve at a rate, straight between its points; None where it has no file that small, or ended before."""
    if not curve or not curve[0].bpp <= bpp <= curve[-1].bpp:
        return None
    return float(np.interp(bpp, [point.bpp for point in curve], [point.psnr for point in curve]))


def pareto_front(points: Iterable[T], place: Callable[[T], tuple[float, float]]) -> list[T]:
    """Points that no cheaper one equals, from the cheapest to the dearest.

    place  of a point: its cost and its worth
    """
    kept: list[T] = []
    for point in sorted(points, key=lambda point: (place(point)[0], -place(point)[1])):
        if not kept or place(point)[1] > place(kept[-1])[1]:
            kept.append(point)
    return kept


def mean_psnr(images: Sequence[Pixels] | Pixels, decoded: Sequence[Pixels] | Pixels) -> float:
    """PSNR in dB over uint8 values, data range 255, the mean over images; infinite where one of them is exact."""
    return float(np.mean([pixel_psnr(a, b) for a, b in zip(images, decoded, strict=True)]))


def in_one_file(images: Sequence[Pixels]) -> bool:
    """Whether they stand side by side in one file: all small, and of one size."""
    return max(images[0].shape[:2]) <= _SMALL and len({pixels.shape for pixels in images}) == 1


def write_images(images: Sequence[Pixels], codec: Codec, *, together: bool, **options: Any) -> tuple[int, list[Pixels]]:
    """Bytes of the file or files, and the images out of them.

    together  as one file of all images, which are of one size
    options   of Pillow
    """
    pictures = [tile(images)] if together else list(images)
    size, decoded = 0, []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, codec, **options)
        size += file.tell()
        decoded.append(np.asarray(Image.open(file).convert("RGB")))
    return size, untile(decoded[0], images) if together else decoded


def tile(images: Sequence[Pixels]) -> Pixels:
    """One picture of images of one size, about square; places left over repeat the last, which costs nearly nothing."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    filled = [*images, *[images[-1]] * (rows * columns - len(images))]
    lines = [np.concatenate(filled[columns * row : columns * (row + 1)], axis=1) for row in range(rows)]
    return np.concatenate(lines)


def untile(picture: Pixels, images: Sequence[Pixels]) -> list[Pixels]:
    """The images of a picture that `tile` made of `images`."""
    height, width = images[0].shape[:2]
    columns = picture.shape[1] // width
    places = (divmod(number, columns) for number in range(len(images)))
    return [picture[row * height : (row + 1) * height, left * width : (left + 1) * width] for row, left in places]
