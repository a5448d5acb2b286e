"""Pictures for a page: inlined as data, and token grids in false colour.

Pictures of up to 160 pixels are stored without loss and shown as crisp pixels; larger ones as WebP at quality 95, a
loss far below those they are there to show.
"""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Pixels", "false_colour", "picture"]

Pixels = NDArray[np.uint8]

_LOSSLESS = 160
_WIDE = 96
_TINY = 64
_PALETTE = ((24, 32, 92), (53, 72, 200), (84, 158, 178), (238, 224, 186), (226, 138, 74), (140, 48, 62))


def false_colour(codes_hw: NDArray[np.integer]) -> Pixels:
    """A grid of codes [h, w] as a picture of one pixel a token: equal codes have equal colours, near ones do not."""
    # Multiplying by the golden ratio scatters consecutive codes evenly over the palette.
    place_hw = codes_hw.astype(np.uint64) * 2654435761 % 2**32 / 2**32
    stops = np.linspace(0, 1, len(_PALETTE))
    channels = [np.interp(place_hw, stops, channel) for channel in np.array(_PALETTE).T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def picture(pixels: Pixels, alt: str) -> str:
    """An `img` element with the picture in it; `ValueError` unless it is uint8 [H, W, 3]."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"picture {alt!r} is {pixels.dtype} {pixels.shape}: expected uint8 [H, W, 3]")
    height, width = pixels.shape[:2]
    small = max(height, width) <= _LOSSLESS
    file, kind = io.BytesIO(), "png" if small else "webp"
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, kind, optimize=True, quality=95)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    classes = " ".join(["pixels"] * small + ["tiny"] * (width <= _TINY) + ["wide"] * (width > _WIDE))
    return (
        f'<img class="{classes}" width="{width}" height="{height}" style="--w:{width}px" alt="{escape(alt)}" '
        f'data-zoom tabindex="0" src="data:image/{kind};base64,{data}">'
    )
