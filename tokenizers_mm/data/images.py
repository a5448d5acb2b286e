"""Image files to pixels: what decoders do silently (clip, drop, ignore, guess) is done openly or refused here.

    decode        bytes or a file -> uint8 [H, W, 3]: EXIF orientation applied, alpha composited on a stated background,
                  16-bit greys scaled, first frame of an animation, a pixel cap read from the header before decoding
    Preprocess    decoded image -> the size a tokenizer takes; its JSON is part of a token store's identity
    to_tensor     uint8 [H, W, 3] -> float [3, H, W] in [-1, 1];  to_uint8  the way back, rounded and clamped

Colour profiles are not applied. Only what makes or takes tensors imports torch, so that a folder that is not there is
told at once. Shape letters: B batch, C channels, H and W pixels.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "ImageError",
    "Pixels",
    "Preprocess",
    "centre_crop",
    "check_folder",
    "decode",
    "find_images",
    "pad_to_multiple",
    "read_image",
    "resize_shorter",
    "resized_shape",
    "to_tensor",
    "to_uint8",
    "unpad",
]

Pixels = NDArray[np.uint8]  # [H, W, 3]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 100_000_000


class ImageError(ValueError):
    """An image that cannot be used: `stage` (read, header, decode or preprocess) and `reason` say where and why."""

    def __init__(self, name: str, stage: str, reason: str) -> None:
        super().__init__(f"{name}: {stage}: {reason}")
        self.name, self.stage, self.reason = name, stage, reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str, str]]:
        """How it comes out of a worker process."""
        return type(self), (self.name, self.stage, self.reason)


def decode(
    source: bytes | str | Path, *, max_pixels: int = MAX_PIXELS, background: tuple[int, int, int] = (255, 255, 255)
) -> Pixels:
    """Decode an image file, or its bytes, to RGB uint8 [H, W, 3]; raises `ImageError` on anything that is not one."""
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise ImageError(name, "read", error.strerror or str(error)) from error
    image = _open(data, name, max_pixels)
    # Decoders of damaged files raise far more than OSError (struct.error, SyntaxError, zlib.error, IndexError, ...).
    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), background)
    except Exception as error:
        raise ImageError(name, "decode", f"{type(error).__name__}: {error}") from error


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Read the header only."""
    if not data:
        raise ImageError(name, "header", "the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the cap below is ours
            image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ImageError(name, "header", f"no image format is recognised (starts with {data[:8]!r})") from error
    except Exception as error:
        raise ImageError(name, "header", f"{type(error).__name__}: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(name, "header", f"{width} x {height} pixels are more than max_pixels={max_pixels}")
    return image


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Pixels:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips to white; 65 535 / 257 = 255 exactly.
        grey = np.rint(np.asarray(image).astype(np.float32) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no stated range; convert the file to 8 or 16 bits")
    if image.has_transparency_data:
        backdrop = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(backdrop, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def find_images(folder: str | Path) -> list[Path]:
    """Every jpg, jpeg, png and webp file under a folder, sorted by relative path; links to folders are not followed.

    Raises `ValueError` where the folder is missing or unreadable, or holds no images.
    """
    root = check_folder(folder)
    files = list(_walk(root))
    images = sorted((p for p in files if p.suffix.lower() in SUFFIXES), key=lambda p: p.relative_to(root).as_posix())
    if not images:
        others = sorted({p.suffix.lower() or "(no suffix)" for p in files})
        found = f"{len(files)} files of type {', '.join(others[:8])}" if files else "an empty folder"
        raise ValueError(f"{root}: found {found}, no images; put {', '.join(SUFFIXES)} files there")
    return images


def check_folder(folder: str | Path) -> Path:
    """The path; `ValueError` unless a folder is there."""
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root}: {'is a file' if root.exists() else 'does not exist'}; give a folder of images")
    return root


def _walk(root: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise ValueError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions") from error

    for folder, _, names in os.walk(root, onerror=fail):
        yield from (Path(folder, name) for name in names)


@dataclass(frozen=True)
class Preprocess:
    """From a decoded image to the size a tokenizer takes.

    size      resize the shorter side to this (bicubic, antialiased), then crop the centre to a square;
              None keeps the native size and crops less than `multiple` pixels off each side
    multiple  the tokenizer's downsampling; both sides of the result are multiples of it
    """

    size: int | None
    multiple: int = 1

    def __post_init__(self) -> None:
        """Refuse a size the tokenizer cannot take."""
        if self.multiple < 1:
            raise ValueError(f"multiple={self.multiple}: expected at least 1")
        if self.size is not None and (self.size < self.multiple or self.size % self.multiple):
            raise ValueError(f"size={self.size} is not a multiple of {self.multiple}, the tokenizer's downsampling")

    def __call__(self, image: Pixels) -> Pixels:
        """Uint8 [H, W, 3] in and out; `ValueError` where an image is smaller than one multiple."""
        if self.size is not None:
            return centre_crop(resize_shorter(image, self.size), self.size, self.size)
        height, width = (side - side % self.multiple for side in image.shape[:2])
        if min(height, width) == 0:
            raise ValueError(
                f"{image.shape[1]} x {image.shape[0]} pixels hold no multiple of {self.multiple} on both sides; "
                "set a size to resize to"
            )
        return centre_crop(image, height, width)

    def to_json(self) -> str:
        """One line of JSON that names every choice made here, for fingerprints."""
        return json.dumps(asdict(self) | {"filter": "bicubic-antialias", "crop": "centre"}, sort_keys=True)


def read_image(path: Path, prepare: Callable[[Pixels], Pixels]) -> Pixels:
    """Decode a file and prepare it; `ImageError`, also of stage preprocess where `prepare` raises `ValueError`."""
    image = decode(path)
    try:
        return prepare(image)
    except ValueError as error:
        raise ImageError(str(path), "preprocess", str(error)) from error


def resize_shorter(
    image: Pixels, size: int, max_pixels: int = MAX_PIXELS, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Pixels:
    """Resize so that the shorter side is `size`; the longer is rounded down, as torchvision's `Resize` does."""
    shape = resized_shape(image, size, max_pixels)
    same = shape == (image.shape[1], image.shape[0])
    return image if same else np.array(Image.fromarray(image).resize(shape, resample))


def resized_shape(image: Pixels, size: int, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height where the shorter side is `size`; `ValueError` where that makes more than `max_pixels`."""
    height, width = image.shape[:2]
    short = min(height, width)
    shape = (size * width // short, size * height // short)
    if shape != (width, height) and shape[0] * shape[1] > max_pixels:
        raise ValueError(f"{width} x {height} pixels would become {shape[0]} x {shape[1]}: the image is too narrow")
    return shape


def centre_crop(image: Pixels, height: int, width: int) -> Pixels:
    """The middle height x width pixels, offsets rounded as torchvision's `CenterCrop` does."""
    top, left = (round((have - want) / 2) for have, want in zip(image.shape, (height, width), strict=False))
    assert min(top, left) >= 0, "the crop is larger than the image"
    return image[top : top + height, left : left + width]


def to_tensor(image: Pixels) -> Tensor:
    """Uint8 [H, W, 3] to float32 [3, H, W] in [-1, 1]."""
    import torch

    return torch.from_numpy(np.array(image.transpose(2, 0, 1), dtype=np.float32, order="C")) / 127.5 - 1


def to_uint8(image_BCHW: Tensor) -> Tensor:
    """Float images in [-1, 1] to uint8 of the same shape: clamped, then rounded to the nearest level."""
    import torch

    return ((image_BCHW.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def pad_to_multiple(image_BCHW: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Pad bottom and right up to a multiple; returns the padded images and the (height, width) for `unpad`.

    Padding mirrors the image, or repeats its edge where the image is too small to mirror.
    """
    from torch.nn import functional as F

    if multiple < 1:
        raise ValueError(f"multiple={multiple}: expected at least 1")
    height, width = image_BCHW.shape[-2:]
    below, right = -height % multiple, -width % multiple
    mode = "reflect" if below < height and right < width else "replicate"
    return F.pad(image_BCHW, (0, right, 0, below), mode=mode), (height, width)


def unpad(image_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut padded images back to the (height, width) that `pad_to_multiple` returned."""
    return image_BCHW[..., : size[0], : size[1]]
