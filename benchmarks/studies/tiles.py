"""JPEG and WebP of many small images: one file of all tiles, so that its header is shared.

A file of one 32x32 image is mostly header, which would make any tokenizer look good. A grid of all images in one file
pays for one header, and the codec may use what neighbouring tiles have in common: the strictest baseline of its kind.
"""

import io
import math

import numpy as np
from PIL import Image

from tokenizers_mm.measure import VARIANTS

QUALITIES = {"jpeg": range(1, 96), "webp": range(0, 101)}


def tiled(images_NHWC):
    """One image [rows H, columns W, 3] of uint8 images, about square; the places left over repeat the last image."""
    count, height, width, channels = images_NHWC.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    filled = np.concatenate([images_NHWC, images_NHWC[-1:].repeat(rows * columns - count, 0)])
    grid = filled.reshape(rows, columns, height, width, channels)
    return np.ascontiguousarray(grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels))


def untiled(picture, images_NHWC):
    """The images of a picture that `tiled` made of `images_NHWC`."""
    _, height, width, channels = images_NHWC.shape
    rows, columns = picture.shape[0] // height, picture.shape[1] // width
    grid = picture.reshape(rows, height, columns, width, channels).transpose(0, 2, 1, 3, 4)
    return grid.reshape(-1, height, width, channels)[: len(images_NHWC)]


def codec_curve(images_NHWC, codec, *, below):
    """Points (bits per pixel, PSNR as the mean over images) of one codec on the tiles, rates up to `below`.

    Every variant of the codec is written at every quality; every byte of the file counts.
    """
    picture = tiled(images_NHWC)
    points = []
    for options in VARIANTS[codec]:
        for quality in QUALITIES[codec]:
            file = io.BytesIO()
            Image.fromarray(picture).save(file, codec, quality=quality, **options)
            bits_per_pixel = 8 * file.tell() / (len(images_NHWC) * math.prod(images_NHWC.shape[1:3]))
            if bits_per_pixel > below:
                break
            decoded = untiled(np.asarray(Image.open(file).convert("RGB")), images_NHWC)
            points.append(
                {"bpp": bits_per_pixel, "psnr": mean_psnr(decoded, images_NHWC), "quality": quality, **options}
            )
    return sorted(points, key=lambda point: point["bpp"])


def at_rate(points, bits_per_pixel):
    """The point of highest PSNR within a rate, or None where every file is larger.

    Qualities are coarse, so it may spend less than it might: `interpolated` is the PSNR of the curve at just this rate.
    """
    best = max((p for p in points if p["bpp"] <= bits_per_pixel), key=lambda point: point["psnr"], default=None)
    if best is None:
        return None
    curve = hull(points)
    between = np.interp(bits_per_pixel, [p["bpp"] for p in curve], [p["psnr"] for p in curve])
    return best | {"interpolated": float(between)}


def hull(points):
    """Points that no cheaper one equals: what is drawn as the codec's curve."""
    best, kept = -math.inf, []
    for point in points:
        if point["psnr"] > best:
            best = point["psnr"]
            kept.append(point)
    return kept


def mean_psnr(a_NHWC, b_NHWC):
    """PSNR in dB over uint8, data range 255, the mean over images."""
    error_N = np.square(a_NHWC.astype(np.float64) - b_NHWC).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(error_N, 1e-9))).mean())
