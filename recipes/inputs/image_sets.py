"""Image sets by name, to measure tokenizers on: photos, emoji, fashion-mnist, or any folder.

emoji and fashion-mnist have a training and a held-out part: `emoji` means the held-out images where reconstructions
are measured, `emoji:train` the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenizers_mm.data import (
    ImageError,
    Labelled,
    Pixels,
    Unreadable,
    check_folder,
    find_images,
    read_image,
)
from tokenizers_mm.data.sets import fashion_mnist, heldout_photos, training_photos
from tokenizers_mm.data.sets.emoji import emoji

if TYPE_CHECKING:
    from tokenizers_mm.measure import ProbeData

__all__ = ["ImageSet", "check_images", "image_set", "probe_data"]


_LABELLED: dict[str, Callable[..., Labelled]] = {"emoji": emoji, "fashion-mnist": fashion_mnist}
_PHOTOS = {"test": heldout_photos, "train": training_photos}


@dataclass(frozen=True)
class ImageSet:
    """Images by name: `images` to measure on, `split` of those that have one (test, train; emoji also all)."""

    images: str
    split: str = ""

    @property
    def title(self) -> str:
        """What a protocol calls them."""
        if self.images == "photos":
            return f"photographs of {'scikit-learn, held out' if self.split == 'test' else 'scikit-image'}"
        return f"{self.images}, {self.split}" if self.split else Path(self.images).name

    def others(self) -> ImageSet | None:
        """The training part, where the set has one and this is not it."""
        return ImageSet(self.images, "train") if self.split == "test" else None

    def pixels(
        self,
        size: int,
        limit: int | None = None,
        *,
        prepare: Callable[[Pixels], Pixels] = lambda pixels: pixels,
        counter: Callable[[str | Path, int], Unreadable] | None = None,
    ) -> Iterator[Pixels]:
        """Uint8 [H, W, 3], each as `prepare` makes it.

        size    of sets that are drawn or padded to a size
        limit   only the first so many
        counter  from a folder and its number of images to what counts those that cannot be read; none: all must be

        Raises `TooManyUnreadable`, and `ValueError` where there is no such folder.
        """
        if self.images == "photos":
            yield from map(prepare, islice(_PHOTOS[self.split]().values(), limit))
        elif self.images in _LABELLED:
            yield from map(prepare, _LABELLED[self.images](self.split, size).images_NHWC[:limit])
        else:
            files = find_images(self.images)[:limit]
            unreadable = (
                Unreadable(self.images, len(files), 0.0) if counter is None else counter(self.images, len(files))
            )
            for file in files:
                try:
                    image = read_image(file, prepare)
                except ImageError as error:
                    unreadable.add(file.relative_to(self.images).as_posix(), error)
                else:
                    yield image
            unreadable.require_one()


def image_set(name: str, split: str = "test") -> ImageSet:
    """A set by name, `NAME:SPLIT` for another part than `split`; anything else is a folder."""
    base, _, part = name.partition(":")
    allowed = {"photos": ("train", "test"), "emoji": ("train", "test", "all"), "fashion-mnist": ("train", "test")}
    if base not in allowed:
        return ImageSet(name)
    part = part or split
    if part not in allowed[base]:
        raise ValueError(f"images {name!r}: {base} has the parts {', '.join(allowed[base])}")
    return ImageSet(base, part)


def check_images(name: str) -> None:
    """Raise `ValueError` for a part that a set does not have, and for a folder that is not there."""
    chosen = image_set(name)
    if not chosen.split:
        check_folder(chosen.images)


def probe_data(
    name: str,
    size: int,
    limit: int | None = None,
    counter: Callable[[str | Path, int], Unreadable] | None = None,
) -> ProbeData:
    """Labelled images to probe on.

    name    emoji (5 folds over all, near-duplicates together; emoji:test for the held-out ones alone), fashion-mnist
            (trained on its training part, tested on the other), or a folder with labels (5 folds), or one with labelled
            folders train/ and test/ in it
    limit   use so many images of each part, evenly spread
    counter  see `ImageSet.pixels`
    """
    from tokenizers_mm.data import labelled_folder  # with torch behind them, which `check_images` is before
    from tokenizers_mm.measure import ProbeData

    if name.partition(":")[0] == "emoji":
        chosen = image_set(name, "all")
        return ProbeData(name=chosen.title, train=_spread(_LABELLED["emoji"](chosen.split, size), limit))
    if name == "fashion-mnist":
        train, test = (_spread(_LABELLED[name](part, size), limit) for part in ("train", "test"))
        return ProbeData(name="fashion-mnist, test", train=train, test=test)
    root = Path(name)

    def folder(path: Path) -> Labelled:
        return _spread(labelled_folder(path, size, counter=counter), limit)

    if (root / "train").is_dir() and (root / "test").is_dir():
        parts = [folder(root / part) for part in ("train", "test")]
        if parts[0].classes != parts[1].classes:
            raise ValueError(f"{root}: train/ and test/ have other classes: {parts[0].classes} and {parts[1].classes}")
        return ProbeData(name=f"{root.name}, test", train=parts[0], test=parts[1])
    return ProbeData(name=root.name, train=folder(root))


def _spread(data: Labelled, limit: int | None) -> Labelled:
    if limit is None or limit >= len(data):
        return data
    return data.subset(np.linspace(0, len(data) - 1, limit).astype(int))
