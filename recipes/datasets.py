"""Image folders that need no download."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tokenizers_mm.data.photos import heldout_photos, training_photos
from tokenizers_mm.data.shapes import Shapes, write_folder

_NAMES = ("shapes", "photos")


def write_dataset(name: str, folder: Path, *, count: int = 10_000, seed: int = 0) -> int:
    """Write a data set as an image folder; returns the number of images.

    shapes  captioned shapes of the training split, with captions.jsonl
    photos  the bundled photographs, in train/ and heldout/
    """
    if name not in _NAMES:
        raise ValueError(f"data set {name!r}: expected one of {', '.join(_NAMES)}")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder")
    if name == "shapes":
        write_folder(Shapes(count, seed, "train"), folder)
        return count
    splits = {"train": training_photos(), "heldout": heldout_photos()}
    for split, photos in splits.items():
        (folder / split).mkdir(parents=True)
        for key, pixels in photos.items():
            Image.fromarray(pixels).save(folder / split / f"{key}.png")
    return sum(len(photos) for photos in splits.values())
