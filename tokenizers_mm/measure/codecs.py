"""JPEG and WebP at a given bit rate: the baselines that a learned tokenizer is held against.

A tokenizer that spends R bits per pixel is compared with an ordinary codec that spends at most R, every byte of the
file counted, headers too. On images of a few pixels the header is most of the file: compare on photographs.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from tokenizers_mm.data import Pixels

__all__ = ["VARIANTS", "Codec", "CodecResult", "encode_at_rate", "pixel_psnr"]

Codec = Literal["jpeg", "webp"]

# The ways to write one image that are tried at every rate; the one with the least error wins.
VARIANTS: dict[Codec, tuple[Mapping[str, Any], ...]] = {
    "jpeg": tuple(
        {"optimize": True, "subsampling": subsampling, "progressive": progressive}
        for subsampling in ("4:2:0", "4:4:4")
        for progressive in (False, True)
    ),
    "webp": ({"method": 6},),
}
_QUALITIES: dict[Codec, tuple[int, int]] = {"jpeg": (1, 95), "webp": (0, 100)}


@dataclass(frozen=True, kw_only=True, eq=False)
class CodecResult:
    """One image written by a codec.

    target_bpp, bpp  bits per pixel asked for, and those of the whole file
    reached          False where even the lowest quality is above the target; then this is the smallest file
    psnr             dB over the uint8 RGB values
    quality, options what to pass to Pillow to get the same file
    pixels           the decoded image, uint8 [H, W, 3]
    """

    codec: Codec
    target_bpp: float
    bpp: float
    reached: bool
    psnr: float
    quality: int
    options: Mapping[str, Any]
    pixels: Pixels

    def record(self) -> dict[str, Any]:
        """Everything but the pixels, JSON-able."""
        fields = {name: value for name, value in vars(self).items() if name != "pixels"}
        return fields | {"options": dict(self.options)}


def encode_at_rate(pixels: Pixels, codec: Codec, bits_per_pixel: float) -> CodecResult:
    """Write an image (uint8 [H, W, 3]) with the highest quality that stays within `bits_per_pixel`.

    Every variant of the codec is tried and the best PSNR returned. Where no variant reaches the rate the result is the
    smallest file there is, with `reached` False. Raises `ValueError` on other images, codecs or rates.
    """
    if codec not in get_args(Codec):
        raise ValueError(f"codec={codec!r}: expected one of {', '.join(get_args(Codec))}")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}: expected uint8 [H, W, 3]")
    if not bits_per_pixel > 0:
        raise ValueError(f"bits_per_pixel={bits_per_pixel}: expected a positive rate")
    budget = math.floor(bits_per_pixel * pixels.shape[0] * pixels.shape[1] / 8)
    results = [_search(pixels, codec, options, budget, bits_per_pixel) for options in VARIANTS[codec]]
    reached = [result for result in results if result.reached]
    if not reached:
        return min(results, key=lambda result: result.bpp)
    return max(reached, key=lambda result: result.psnr)


def _search(pixels: Pixels, codec: Codec, options: Mapping[str, Any], budget: int, target: float) -> CodecResult:
    """Bisect the quality; file size grows with it."""
    image = Image.fromarray(pixels)
    low, high = _QUALITIES[codec]
    best, data = low, _write(image, codec, low, options)
    reached = len(data) <= budget
    while reached and low < high:
        middle = (low + high + 1) // 2
        candidate = _write(image, codec, middle, options)
        if len(candidate) <= budget:
            low, best, data = middle, middle, candidate
        else:
            high = middle - 1
    decoded = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return CodecResult(
        codec=codec,
        target_bpp=target,
        bpp=8 * len(data) / (pixels.shape[0] * pixels.shape[1]),
        reached=reached,
        psnr=pixel_psnr(pixels, decoded),
        quality=best,
        options=options,
        pixels=decoded,
    )


def _write(image: Image.Image, codec: Codec, quality: int, options: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, codec, quality=quality, **options)
    return file.getvalue()


def pixel_psnr(a: Pixels, b: Pixels) -> float:
    """PSNR in dB of two uint8 images, data range 255; infinite where they are equal."""
    error = float(np.square(a.astype(np.float64) - b).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
