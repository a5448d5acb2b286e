"""Captioned shapes: small synthetic images whose content is known exactly, made in memory and always the same.

4 shapes x 6 colours x 2 sizes x 9 positions = 432 captions (ln 432 = 6.07 nats). 15% of the combinations are held out;
every single attribute value stays in the training split, so the held-out split asks for composition, not recall.

Shapes are signed-distance functions: the coverage of a pixel is clip(1/2 - distance, 0, 1), which antialiases edges
without supersampling.

Shape letters: N images, A attributes, H and W pixels, C colour channels.
"""

from __future__ import annotations

import json
from copy import copy
from itertools import product
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenizers_mm.runtime import local_path

__all__ = [
    "ATTRIBUTES",
    "COMBINATIONS",
    "Shapes",
    "Split",
    "caption",
    "edits",
    "parse_caption",
    "split_indices",
    "write_folder",
]

Split = Literal["train", "heldout", "all"]
Floats = NDArray[np.float32]

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": ("small", "large"),
    "colour": ("red", "green", "blue", "yellow", "purple", "cyan"),
    "shape": ("circle", "square", "triangle", "cross"),
    "position": tuple(
        f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right")
    ),
}
COMBINATIONS: NDArray[np.int64] = np.array(list(product(*(range(len(v)) for v in ATTRIBUTES.values()))), dtype=np.int64)

# Lengths in pixels of a 32-pixel image; they scale with the image.
_REFERENCE_SIZE = 32
_RADII = np.array([5.2, 8.0], dtype=np.float32)
_CENTRES = np.array([9.0, 16.0, 23.0], dtype=np.float32)
_POSITION_JITTER = 2.0
_COLOUR_JITTER = 18.0
_COLOURS = np.array(
    [(214, 40, 40), (40, 158, 62), (42, 84, 220), (238, 196, 24), (150, 52, 190), (28, 188, 204)], dtype=np.float32
)
_BACKGROUND = 240.0
_BACKGROUND_JITTER = 10.0
_HELDOUT_SHARE = 0.15
_HELDOUT_SEED = 432


def caption(attributes: dict[str, str]) -> str:
    """Return e.g. "small red circle top left"; `ValueError` on a missing or unknown attribute."""
    for name, values in ATTRIBUTES.items():
        if attributes.get(name) not in values:
            raise ValueError(f"{name}={attributes.get(name)!r}: expected one of {', '.join(values)}")
    return " ".join(attributes[name] for name in ATTRIBUTES)


def parse_caption(text: str) -> dict[str, str] | None:
    """Exact inverse of `caption`: the four attributes, or None for any other text."""
    values = dict(zip(ATTRIBUTES, text.split(" ", len(ATTRIBUTES) - 1), strict=False))
    known = all(values.get(name) in allowed for name, allowed in ATTRIBUTES.items())
    return values if known else None


def split_indices(split: Split) -> NDArray[np.int64]:
    """Rows of `COMBINATIONS` that belong to a split, ascending."""
    if split not in get_args(Split):
        raise ValueError(f"split={split!r}: expected one of {', '.join(get_args(Split))}")
    order = np.random.default_rng(_HELDOUT_SEED).permutation(len(COMBINATIONS))
    heldout = round(_HELDOUT_SHARE * len(COMBINATIONS))
    return np.sort({"train": order[heldout:], "heldout": order[:heldout], "all": order}[split])


class Shapes:
    """`count` captioned shapes, drawn evenly from the combinations of a split.

    images      uint8 [N, H, W, 3]
    captions    N texts
    attributes  int64 [N, 4]: index into the values of each entry of `ATTRIBUTES`
    labels      int64 [N]: row of `COMBINATIONS`, 0..431
    keys        N unique names

    The same arguments give the same images. Without jitter an image is a function of its caption.
    """

    def __init__(
        self, count: int, seed: int, split: Split = "train", jitter: bool = True, image_size: int = _REFERENCE_SIZE
    ) -> None:
        if count < 1:
            raise ValueError(f"count={count}: expected at least 1 image")
        if image_size < 8:
            raise ValueError(f"image_size={image_size}: shapes cannot be told apart below 8 pixels")
        rows = split_indices(split)
        rng = np.random.default_rng(seed)
        passes = -(-count // len(rows))
        self.labels: NDArray[np.int64] = np.concatenate([rng.permutation(rows) for _ in range(passes)])[:count]
        self.keys: list[str] = [f"{split}-{seed}-{index:06d}" for index in range(count)]
        noise = rng.uniform(-1, 1, (count, 8)).astype(np.float32)
        self._noise_N8: Floats = noise if jitter else np.zeros_like(noise)
        self.image_size = image_size
        self._draw()

    def _draw(self) -> None:
        self.attributes: NDArray[np.int64] = COMBINATIONS[self.labels]
        self.images: NDArray[np.uint8] = _render(self.attributes, self._noise_N8, self.image_size)
        columns = zip(ATTRIBUTES.values(), self.attributes.T, strict=True)
        words = [[values[i] for i in column] for values, column in columns]
        self.captions: list[str] = [" ".join(parts) for parts in zip(*words, strict=True)]

    def __len__(self) -> int:
        return len(self.keys)


def edits(
    count: int, seed: int, split: Split = "train", image_size: int = _REFERENCE_SIZE
) -> tuple[Shapes, list[str], Shapes]:
    """Source images, instructions ("make it red"), target images: only the colour of the shape differs.

    Targets are drawn from `split`; sources are always combinations of the training split.
    """
    target = Shapes(count, seed, split, image_size=image_size)
    sizes = [len(values) for values in ATTRIBUTES.values()]
    choices_6NA = np.repeat(target.attributes[None], sizes[1], axis=0)
    choices_6NA[..., 1] = np.arange(sizes[1])[:, None]
    labels_6N = np.ravel_multi_index(tuple(choices_6NA.transpose(2, 0, 1)), sizes)
    allowed_6N = np.isin(labels_6N, split_indices("train")) & (labels_6N != target.labels)
    assert allowed_6N.any(0).all(), "every object needs a second colour in the training split"
    score_6N = np.random.default_rng((seed, 1)).random(allowed_6N.shape) * allowed_6N
    source = copy(target)
    source.labels = np.take_along_axis(labels_6N, score_6N.argmax(0)[None], axis=0)[0]
    source._draw()
    return source, [f"make it {ATTRIBUTES['colour'][row[1]]}" for row in target.attributes], target


def write_folder(shapes: Shapes, path: str | Path) -> Path:
    """Write one PNG per image and `captions.jsonl` (file, caption, label) beside them; returns the folder."""
    folder = local_path(path, "path")
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for image, key, text, label in zip(shapes.images, shapes.keys, shapes.captions, shapes.labels, strict=True):
        Image.fromarray(image).save(folder / f"{key}.png")
        lines.append(json.dumps({"file": f"{key}.png", "caption": text, "label": int(label)}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _render(
    attributes_NA: NDArray[np.int64], noise_N8: Floats, image_size: int, chunk: int = 1024
) -> NDArray[np.uint8]:
    """Draw the images chunk by chunk (bounded memory); noise in [-1, 1]: 2 position, 3 colour, 3 background."""
    images = np.empty((len(attributes_NA), image_size, image_size, 3), np.uint8)
    for start in range(0, len(images), chunk):
        rows = slice(start, start + chunk)
        size, colour, shape, position = attributes_NA[rows].T
        noise = noise_N8[rows]
        paint_NC = _COLOURS[colour] + _COLOUR_JITTER * noise[:, 2:5]
        # Backgrounds vary in brightness together and in tint a little, so that they stay plain and light.
        backdrop_NC = _BACKGROUND + _BACKGROUND_JITTER * (0.7 * noise[:, 5:6] + 0.3 * noise[:, 5:8])
        centre_N2 = np.stack([_CENTRES[position % 3], _CENTRES[position // 3]], 1) + _POSITION_JITTER * noise[:, :2]
        cover_NHW = _coverage(shape, _RADII[size], centre_N2, image_size)[..., None]
        paint, backdrop = paint_NC[:, None, None], backdrop_NC[:, None, None]
        images[rows] = np.clip(np.rint(backdrop + cover_NHW * (paint - backdrop)), 0, 255).astype(np.uint8)
    return images


def _coverage(shape_N: NDArray[np.int64], radius_N: Floats, centre_N2: Floats, image_size: int) -> Floats:
    """Share of each pixel that the shape covers, [N, H, W]."""
    scale = np.float32(image_size / _REFERENCE_SIZE)
    pixels = np.arange(image_size, dtype=np.float32) + np.float32(0.5)
    x_NHW = pixels[None, None, :] - scale * centre_N2[:, 0, None, None]
    y_NHW = pixels[None, :, None] - scale * centre_N2[:, 1, None, None]
    cover_NHW = np.empty((len(shape_N), image_size, image_size), np.float32)
    for kind, distance in enumerate((_circle, _square, _triangle, _cross)):
        chosen = np.flatnonzero(shape_N == kind)
        radius = scale * radius_N[chosen, None, None]
        cover_NHW[chosen] = np.clip(0.5 - distance(x_NHW[chosen], y_NHW[chosen], radius), 0, 1)
    return cover_NHW


def _circle(x: Floats, y: Floats, radius: Floats) -> Floats:
    distance: Floats = np.hypot(x, y) - radius
    return distance


def _square(x: Floats, y: Floats, radius: Floats) -> Floats:
    distance: Floats = np.maximum(np.abs(x), np.abs(y)) - np.float32(0.88) * radius
    return distance


def _triangle(x: Floats, y: Floats, radius: Floats) -> Floats:
    """Isosceles, as wide and as high as the circle: apex (0, -r), base from (-r, r) to (r, r)."""
    side = (2 * np.abs(x) - y - radius) / np.float32(np.sqrt(5))
    distance: Floats = np.maximum(side, y - radius)
    return distance


def _cross(x: Floats, y: Floats, radius: Floats) -> Floats:
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    distance: Floats = np.maximum(long - radius, short - np.float32(0.34) * radius)
    return distance
