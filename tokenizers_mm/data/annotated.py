"""Sources whose batches are `Examples`: images with captions or labels.

    LabelledImages   a `Labelled` data set in memory, augmented where asked
    CaptionedFolder  an image folder with the captions and labels that `annotations` finds

Shape letters: B batch, N positions, D channels, H and W pixels, C colour channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from tokenizers_mm.data.annotations import read_annotations
from tokenizers_mm.data.folder import FolderSource
from tokenizers_mm.data.images import ImageError, Pixels, Preprocess, find_images, read_image, to_tensor
from tokenizers_mm.data.labelled import Labelled
from tokenizers_mm.data.sources import Draw, Examples, Fetched, batch_of
from tokenizers_mm.data.unreadable import Unreadable

__all__ = ["CaptionedFolder", "LabelledImages", "labelled_folder"]


class LabelledImages:
    """A labelled data set as a source: batches are `Examples` with captions, and labels where there are classes.

    flip   mirror left and right half of the time; not for words, nor where captions tell left from right
    shift  move by up to so many pixels in both directions; the edge is repeated where pixels are missing
    crop   cut a random square of this side out of the image
    """

    def __init__(self, data: Labelled, *, flip: bool = False, shift: int = 0, crop: int | None = None) -> None:
        height, width = data.images_NHWC.shape[1:3]
        if len(data) == 0:
            raise ValueError("data holds no images: expected at least one")
        if not 0 <= shift < min(height, width):
            raise ValueError(f"shift={shift}: expected 0 or more, and less than the images' {height} x {width} pixels")
        if crop is not None and not 1 <= crop <= min(height, width):
            raise ValueError(f"crop={crop}: expected 1 or more, and at most the images' {height} x {width} pixels")
        self.data, self.keys = data, list(data.keys)
        self.flip, self.shift, self.crop = flip, shift, crop
        self.fixed = not flip and shift == 0 and crop is None
        self.image_size = (height, width) if crop is None else (crop, crop)

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, draws: Sequence[Draw]) -> Examples:
        """Float images [B, 3, H, W] in [-1, 1] with what is known about them."""
        chosen = [draw.index for draw in draws]
        images = [self._augmented(self.data.images_NHWC[draw.index], draw.seed) for draw in draws]
        return Examples(
            torch.stack([to_tensor(image) for image in images]),
            tuple(self.data.captions[i] for i in chosen),
            torch.from_numpy(self.data.labels_N[chosen]) if self.data.classes else None,
        )

    def _augmented(self, image: Pixels, seed: int) -> Pixels:
        if self.fixed:
            return image
        rng = np.random.default_rng(seed)
        if self.shift:
            down, right = rng.integers(-self.shift, self.shift + 1, 2)
            height, width = image.shape[:2]
            rows = np.clip(np.arange(height) - down, 0, height - 1)
            columns = np.clip(np.arange(width) - right, 0, width - 1)
            image = image[rows[:, None], columns]
        if self.crop is not None:
            top, left = (int(rng.integers(0, have - self.crop + 1)) for have in image.shape[:2])
            image = image[top : top + self.crop, left : left + self.crop]
        return image[:, ::-1] if self.flip and rng.random() < 0.5 else image


class CaptionedFolder(FolderSource):
    """An image folder whose batches are `Examples` with the captions and labels that stand beside the images.

    Arguments as `FolderSource`; `data.annotations` says where captions and labels may stand. Raises `ValueError` naming
    the file where there are none, one is empty, or they and the images do not pair.
    """

    def __post_init__(self) -> None:
        """Find the files and what is said about them."""
        super().__post_init__()
        self.annotations = read_annotations(self.path, self.files)

    def batch(self, draws: Sequence[Draw]) -> Examples:
        """Float images [B, 3, size, size] in [-1, 1] with what is known about them; see `ImageFolder.batch`."""
        examples: Examples = batch_of(self, draws)
        return examples

    def fetch(self, draws: Sequence[Draw]) -> Fetched:
        """As `FolderSource.fetch`; captions and labels are those of the images shown."""
        fetched = super().fetch(draws)
        if fetched.batch is None:
            return fetched
        chosen = [draw.index for draw in fetched.draws]
        captions = tuple(self.annotations.captions[i] for i in chosen) if self.annotations.captions else ()
        labels_B = torch.tensor([self.annotations.labels[i] for i in chosen]) if self.annotations.labels else None
        return fetched._replace(batch=Examples(fetched.batch, captions, labels_B))


def labelled_folder(
    path: str | Path,
    size: int,
    *,
    limit: int | None = None,
    counter: Callable[[str | Path, int], Unreadable] | None = None,
) -> Labelled:
    """An image folder with its captions and labels in memory: shorter side resized to `size`, centre cropped.

    Captions are the names of the classes where there are only labels, and labels are unknown where there are none.
    limit   keeps the first so many images
    counter  called with the folder and the number of images: counts those that cannot be read, which are left out

    Raises `ValueError` as `CaptionedFolder` does, `TooManyUnreadable`, and without a ledger `ImageError`.
    """
    files = find_images(path)
    annotations = read_annotations(path, files)
    captions = annotations.captions or tuple(annotations.classes[label] for label in annotations.labels)
    keys, preprocess = [file.relative_to(path).as_posix() for file in files[:limit]], Preprocess(size)
    unreadable, images = None if counter is None else counter(path, len(keys)), {}
    for index, key in enumerate(keys):
        try:
            images[index] = read_image(files[index], preprocess)
        except ImageError as error:
            if unreadable is None:
                raise
            unreadable.add(key, error)
    if unreadable is not None:
        unreadable.require_one()
    return Labelled(
        images_NHWC=np.stack(list(images.values())),
        captions=tuple(captions[index] for index in images),
        labels_N=np.array([annotations.labels[index] if annotations.labels else -1 for index in images]),
        classes=annotations.classes,
        keys=tuple(keys[index] for index in images),
    )
