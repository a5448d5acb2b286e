"""The data sets a recipe can name: each says how to build its source."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tokenizers_mm.data import (
    ALLOWED_SHARE,
    CaptionedFolder,
    ImageArrays,
    ImageFolder,
    LabelledImages,
    RandomCrops,
    Source,
    check_share,
)
from tokenizers_mm.data.sets import EmojiSplit, FashionSplit, Shapes, WordSplit, fashion_mnist, training_photos
from tokenizers_mm.data.sets.emoji import emoji
from tokenizers_mm.data.sets.words import words
from tokenizers_mm.store import TokenDataset, WithFeatures

__all__ = [
    "EmojiImages",
    "FashionImages",
    "FolderImages",
    "ImageData",
    "PhotoCrops",
    "ShapeImages",
    "WordImages",
    "size_of",
]


_FROM_ZERO = ("seed", "shift", "max_unreadable")


@dataclass(frozen=True)
class _Sized:
    """Options whose whole numbers are sizes and counts."""

    def __post_init__(self) -> None:
        """Refuse those below 1, which no image and no data set can have."""
        for name, value in vars(self).items():
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if whole and name not in _FROM_ZERO and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")


@dataclass(frozen=True, kw_only=True)
class PhotoCrops(_Sized):
    """Random crops of the photographs inside the scikit-image wheel, reduced or enlarged first up to so many times."""

    kind: Literal["photos"] = "photos"
    crop: int = 64
    max_downscale: int = 3
    max_upscale: int = 2

    def source(self) -> Source:
        """Build the source."""
        return RandomCrops(
            list(training_photos().values()), self.crop, max_downscale=self.max_downscale, max_upscale=self.max_upscale
        )


@dataclass(frozen=True, kw_only=True)
class ShapeImages(_Sized):
    """Captioned shapes, made on the fly."""

    kind: Literal["shapes"] = "shapes"
    count: int = 8000
    seed: int = 0
    image_size: int = 32

    def source(self) -> Source:
        """Build the source."""
        return ImageArrays(Shapes(self.count, self.seed, "train", image_size=self.image_size).images)


@dataclass(frozen=True, kw_only=True)
class EmojiImages(_Sized):
    """Colour emoji with their names and groups (Debian: fonts-noto-color-emoji, unicode-data)."""

    kind: Literal["emoji"] = "emoji"
    split: EmojiSplit = "train"
    image_size: int = 32
    flip: bool = False
    shift: int = 0
    folder: str | None = None

    def source(self) -> Source:
        """Build the source; `MissingDataError` names the packages."""
        data = emoji(self.split, self.image_size, folder=self.folder)
        return LabelledImages(data, flip=self.flip, shift=self.shift)


@dataclass(frozen=True, kw_only=True)
class FashionImages(_Sized):
    """Grey pictures of clothes in ten classes (Debian: dataset-fashion-mnist); `count`: only the first so many."""

    kind: Literal["fashion-mnist"] = "fashion-mnist"
    split: FashionSplit = "train"
    image_size: int = 32
    count: int | None = None
    flip: bool = False
    shift: int = 0
    folder: str | None = None

    def source(self) -> Source:
        """Build the source; `MissingDataError` names the package, `ValueError` says when there are fewer images."""
        data = fashion_mnist(self.split, self.image_size, folder=self.folder)
        if self.count is not None and self.count > len(data):
            raise ValueError(f"count={self.count}: fashion-mnist, {self.split} has {len(data)} images")
        chosen = data if self.count is None else data.subset(range(self.count))
        return LabelledImages(chosen, flip=self.flip, shift=self.shift)


@dataclass(frozen=True, kw_only=True)
class WordImages(_Sized):
    """Words in several fonts, sizes and colours; the caption is the word."""

    kind: Literal["words"] = "words"
    split: WordSplit = "train"
    count: int = 8000
    seed: int = 0
    height: int = 32
    width: int = 96
    fonts: str | None = None

    def source(self) -> Source:
        """Build the source; `MissingDataError` where there are no fonts."""
        return LabelledImages(words(self.split, self.count, self.seed, (self.height, self.width), fonts=self.fonts))


@dataclass(frozen=True, kw_only=True)
class FolderImages(_Sized):
    """Your own jpg, png and webp files: shorter side resized to `size`, then a square crop of it.

    captions  batches carry the captions and labels beside the images: captions.jsonl, captions.csv, a txt for each
              image, or a sub-folder per class
    features  token store that `tmm encode TEACHER PATH --size SIZE` wrote: batches carry the teacher's features; crops
              must be `centre` and `flip` false
    max_unreadable  share of the images that may be unreadable: each is named, and the next one is used in its place;
              more end the run. A resumed run may have another
    """

    path: str
    size: int
    kind: Literal["folder"] = "folder"
    crop: Literal["random", "centre"] = "random"
    flip: bool = True
    captions: bool = False
    features: str | None = None
    max_unreadable: float = ALLOWED_SHARE

    def __post_init__(self) -> None:
        """Refuse a size that no image can have, features of images that change, and what is no share."""
        super().__post_init__()
        check_share("max_unreadable", self.max_unreadable)
        if self.features is not None and (self.flip or self.crop == "random"):
            raise ValueError(
                f"features={self.features} with flip={self.flip}, crop={self.crop}: cached features belong to one "
                "image; set flip: false and crop: centre"
            )

    def source(self) -> Source:
        """Build the source; `ValueError` for a folder without images, or where anything does not pair."""
        folder = CaptionedFolder if self.captions else ImageFolder
        source = folder(Path(self.path), self.size, self.crop, self.flip, self.max_unreadable)
        return source if self.features is None else WithFeatures(source, TokenDataset(self.features))


def size_of(data: ImageData) -> tuple[tuple[str, ...], tuple[int, int]]:
    """Height and width of the images, and the keys that set them: one for a square, else one for each."""
    keys = _SIZE_KEYS[data.kind]
    sides = [int(getattr(data, key)) for key in keys]
    return keys, (sides[0], sides[-1])


ImageData = Annotated[
    PhotoCrops | ShapeImages | EmojiImages | FashionImages | WordImages | FolderImages, Field(discriminator="kind")
]


_SIZE_KEYS: dict[str, tuple[str, ...]] = {
    "photos": ("crop",),
    "shapes": ("image_size",),
    "emoji": ("image_size",),
    "fashion-mnist": ("image_size",),
    "words": ("height", "width"),
    "folder": ("size",),
}
