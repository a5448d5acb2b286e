"""What a training loop draws from: random access without state, so a position in the data is one number.

Draw number g belongs to epoch g // length and is item g % length of that epoch's permutation. A resumed run continues
at g and sees what an uninterrupted run would have seen, whatever the batch size or the number of workers: the
augmentation of an item comes from `Draw.seed` alone.

Shape letters: B batch, N images, C channels, H and W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenizers_mm.data.images import ImageError, Pixels
from tokenizers_mm.data.unreadable import ALLOWED_SHARE, Unreadable
from tokenizers_mm.semantics import Semantics

__all__ = [
    "Draw",
    "Examples",
    "Fetched",
    "ImageArrays",
    "Source",
    "account",
    "batch_of",
    "draws_for",
    "fetch",
    "signed",
    "unreadable_of",
]


_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Draw:
    """One item to fetch and the seed of its augmentation."""

    index: int
    seed: int


@dataclass(frozen=True, eq=False)
class Examples:
    """Images and what belongs to them: the batch of a source that has captions, labels or cached teacher features.

    Sources of plain images give the tensor alone; `Examples.of` takes both.
    """

    image_BCHW: Tensor
    captions: tuple[str, ...] = ()
    labels_B: Tensor | None = None
    features: Semantics | None = None

    def __post_init__(self) -> None:
        """Refuse captions, labels or features of another number of images."""
        count = len(self.image_BCHW)
        beside = {"captions": self.captions or None, "labels_B": self.labels_B, "features": self.features}
        for name, value in beside.items():
            if value is not None and len(value) != count:
                raise ValueError(f"{name}: {len(value)} for {count} images; they must pair one to one")

    @classmethod
    def of(cls, batch: Tensor | Examples) -> Examples:
        """The batch itself, or a tensor of images with nothing beside it."""
        return batch if isinstance(batch, Examples) else cls(batch)

    def __len__(self) -> int:
        return len(self.image_BCHW)

    def to(self, device: torch.device | str) -> Examples:
        """Move everything to a device."""
        labels_B = None if self.labels_B is None else self.labels_B.to(device)
        features = None if self.features is None else self.features.to(device)
        return Examples(self.image_BCHW.to(device), self.captions, labels_B, features)


class Source(Protocol):
    """Anything indexable that makes batches: images here, tokens in a token store.

    Sources of images also say whether they are `fixed`: an item is the same image whenever it is drawn. Sources that
    may meet images that cannot be read have a `fetch` as well, which says what it replaced.
    """

    def __len__(self) -> int: ...

    def batch(self, draws: Sequence[Draw]) -> Any:
        """Fetch these items; the same draws always give the same batch."""


class Fetched(NamedTuple):
    """A batch, and what had to be replaced for it; small beside the batch, to go from process to process.

    batch    None where too many images cannot be read
    draws    those that the batch shows: other than those asked for where images cannot be read
    refused  key -> error of the images that were replaced
    """

    batch: Any
    draws: Sequence[Draw]
    refused: Mapping[str, ImageError]


def fetch(source: Source, draws: Sequence[Draw]) -> Fetched:
    """Fetch these items of any source; in place of those that cannot be read come others, the same every time."""
    own = getattr(source, "fetch", None)
    fetched: Fetched = Fetched(source.batch(draws), draws, {}) if own is None else own(draws)
    return fetched


def unreadable_of(source: Source, *, warn: bool = True) -> Unreadable:
    """An empty ledger for the images of a source; with `warn` each of them is a warning when it is added."""
    return Unreadable(
        getattr(source, "path", type(source).__name__),
        len(source),
        getattr(source, "max_unreadable", ALLOWED_SHARE),
        report=_warn if warn else lambda _: None,
        remedy="repair or remove them, or raise data.max_unreadable",
    )


def account(refused: Mapping[str, ImageError], unreadable: Unreadable) -> None:
    """Add what was refused to a ledger; raises `TooManyUnreadable`, at the latest where no image is left."""
    for key, error in refused.items():
        unreadable.add(key, error)
    unreadable.require_one()


def batch_of(source: Source, draws: Sequence[Draw], unreadable: Unreadable | None = None) -> Any:
    """Fetch these items; what cannot be read is added to a ledger, by default one for this batch alone."""
    fetched = fetch(source, draws)
    account(fetched.refused, unreadable_of(source) if unreadable is None else unreadable)
    return fetched.batch


def _warn(error: ImageError) -> None:
    warnings.warn(f"{error}; the next image is used instead", stacklevel=2)


def draws_for(length: int, seed: int, start: int, count: int) -> list[Draw]:
    """Draws number start .. start + count - 1 of a source of `length` items, shuffled anew every epoch."""
    if length < 1 or seed < 0 or start < 0 or count < 0:
        raise ValueError(f"length={length}, seed={seed}, start={start}, count={count}: length >= 1, the others >= 0")
    base = _mix(seed)
    return [
        Draw(int(_permutation(length, seed, g // length)[g % length]), _mix(base + g))
        for g in range(start, start + count)
    ]


@lru_cache(maxsize=4)
def _permutation(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(length)


def _mix(number: int) -> int:
    """One round of SplitMix64, a bijection of 64-bit integers: seeds of different draws never collide."""
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


class ImageArrays:
    """Images held in memory, unchanged: uint8 [N, H, W, C] -> float image_BCHW in [-1, 1]."""

    fixed = True

    def __init__(self, images: Pixels) -> None:
        if images.ndim != 4 or images.dtype != np.uint8 or len(images) == 0:
            raise ValueError(f"images are {images.dtype} {images.shape}: expected uint8 [N, H, W, C], at least one")
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, draws: Sequence[Draw]) -> Tensor:
        """Float [B, C, H, W] in [-1, 1]; seeds play no part."""
        return signed(self.images[[draw.index for draw in draws]])


def signed(images_NHWC: Pixels) -> Tensor:
    """Uint8 [N, H, W, C] to float [N, C, H, W] in [-1, 1]."""
    floats = np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2)).astype(np.float32)
    return torch.from_numpy(floats / np.float32(127.5) - np.float32(1))
