"""Fashion-MNIST: 60 000 + 10 000 grey pictures of clothes in ten classes, from a Debian package, no download.

Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms"
(https://arxiv.org/abs/1708.07747). Shape letters: N images, H and W pixels, C colour channels.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenizers_mm.data import Labelled, MissingDataError

__all__ = ["CLASSES", "FashionSplit", "fashion_mnist"]

FashionSplit = Literal["train", "test"]
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_PREFIXES = {"train": "train", "test": "t10k"}
_SIDE, _PADDED = 28, 32


def fashion_mnist(split: FashionSplit = "train", size: int = 32, *, folder: str | Path | None = None) -> Labelled:
    """Grey on black, [N, size, size, 3]; the names of the classes are the captions.

    split   train (60 000) or test (10 000), as published
    size    28 as published; 32 with a border of two black pixels; any other size is that one resized (bicubic)
    folder  holds the four `...-ubyte.gz` files; default: where Debian's package puts them

    The three channels are one in memory, and read-only. Raises `MissingDataError` naming the package; `ValueError` on a
    split, size or file that cannot be used.
    """
    if split not in get_args(FashionSplit):
        raise ValueError(f"split={split!r}: expected one of {', '.join(get_args(FashionSplit))}")
    if size < 8:
        raise ValueError(f"size={size}: clothes cannot be told apart below 8 pixels")
    prefix = Path(folder or _FOLDER) / _PREFIXES[split]
    grey_NHW = _read_idx(Path(f"{prefix}-images-idx3-ubyte.gz"), 3)
    labels_N = _read_idx(Path(f"{prefix}-labels-idx1-ubyte.gz"), 1).astype(np.int64)
    if grey_NHW.shape[1:] != (_SIDE, _SIDE) or len(grey_NHW) != len(labels_N):
        raise ValueError(f"{prefix}-*: images {grey_NHW.shape}, labels {labels_N.shape}: expected [N, 28, 28] and [N]")
    if len(labels_N) and labels_N.max() >= len(CLASSES):
        raise ValueError(f"{prefix}-labels-idx1-ubyte.gz: label {labels_N.max()}: expected 0..{len(CLASSES) - 1}")
    if size != _SIDE:
        border = (_PADDED - _SIDE) // 2
        grey_NHW = np.pad(grey_NHW, ((0, 0), (border, border), (border, border)))
    if size not in (_SIDE, _PADDED):
        grey_NHW = np.stack([_resized(grey_HW, size) for grey_HW in grey_NHW])
    return Labelled(
        images_NHWC=np.broadcast_to(grey_NHW[..., None], (*grey_NHW.shape, 3)),
        captions=tuple(CLASSES[label] for label in labels_N),
        labels_N=labels_N,
        classes=CLASSES,
        keys=tuple(f"{split}-{number:05d}" for number in range(len(labels_N))),
    )


def _resized(grey_HW: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(grey_HW).resize((size, size), Image.Resampling.BICUBIC))


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file of bytes: two zeros, type 8, number of dimensions, big-endian sizes, then the values."""
    try:
        data = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise MissingDataError(
            f"{path}: no such file; apt-get install dataset-fashion-mnist, or give a folder that holds {path.name}"
        ) from None
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); fetch the file again") from error
    header = 4 + 4 * dimensions
    shape = tuple(int(side) for side in np.frombuffer(data[4:header], dtype=">u4"))
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) != header + int(np.prod(shape)):
        raise ValueError(f"{path}: {len(data)} bytes, no IDX file of bytes in {dimensions} dimensions; fetch it again")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)
