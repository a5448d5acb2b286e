"""Sources whose batches are `Examples`: images with captions, labels, or cached features of a teacher.

    LabelledImages   a `Labelled` data set in memory, augmented where asked
    CaptionedFolder  an `ImageFolder` with the captions and labels that `notes` finds
    WithFeatures     any source of fixed images, with a teacher's features from a token store or from memory

Shape letters: B batch, N positions, D channels, H and W pixels, C colour channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tokenizers_mm.data.folder import ImageFolder
from tokenizers_mm.data.images import SUFFIXES, ImageError, Preprocess, find_images, read_image, to_tensor
from tokenizers_mm.data.labelled import Labelled
from tokenizers_mm.data.notes import read_notes
from tokenizers_mm.data.shards import digest
from tokenizers_mm.data.sources import Draw, Examples, Fetched, Source, batch_of, fetch
from tokenizers_mm.data.store import TokenDataset
from tokenizers_mm.data.unreadable import ALLOWED_SHARE, Unreadable
from tokenizers_mm.semantics import Semantics

__all__ = ["CaptionedFolder", "LabelledImages", "WithFeatures", "labelled_folder"]

Pixels = NDArray[np.uint8]

_COMPARED_FILES = 16


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


class CaptionedFolder:
    """An image folder whose batches are `Examples` with the captions and labels that stand beside the images.

    Arguments as `ImageFolder`; `notes` says where captions and labels may stand. Raises `ValueError` naming the file
    where there are none, one is empty, or they and the images do not pair.
    """

    def __init__(
        self,
        path: str | Path,
        size: int,
        crop: Literal["random", "centre"] = "random",
        flip: bool = True,
        max_unreadable: float = ALLOWED_SHARE,
    ) -> None:
        self.images = ImageFolder(path, size, crop, flip, max_unreadable)
        self.notes = read_notes(path, self.images.files)
        self.path, self.files, self.keys, self.fixed = path, self.images.files, self.images.keys, self.images.fixed
        self.image_size, self.max_unreadable, self.refuse = (size, size), max_unreadable, self.images.refuse

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, draws: Sequence[Draw]) -> Examples:
        """Float images [B, 3, size, size] in [-1, 1] with what is known about them; see `ImageFolder.batch`."""
        examples: Examples = batch_of(self, draws)
        return examples

    def fetch(self, draws: Sequence[Draw]) -> Fetched:
        """As `ImageFolder.fetch`; captions and labels are those of the images shown."""
        fetched = self.images.fetch(draws)
        if fetched.batch is None:
            return fetched
        chosen = [draw.index for draw in fetched.draws]
        captions = tuple(self.notes.captions[i] for i in chosen) if self.notes.captions else ()
        labels_B = torch.tensor([self.notes.labels[i] for i in chosen]) if self.notes.labels else None
        return fetched._replace(batch=Examples(fetched.batch, captions, labels_B))


class WithFeatures:
    """A source with a teacher's features beside every image, computed once instead of in every step.

    features  a token store that a tower wrote (`tmm encode TOWER FOLDER`): paired by key, where pooled features are
              the mean over positions; or `Semantics` of all images in memory: paired by number

    Features belong to one image, so the source must be `fixed`: no random crops, no mirroring.
    Raises `ValueError` on a source that is not, and on features of other images: another number, other keys, another
    shape of image, files that have changed (sixteen of them are compared by SHA-256), codes instead of features.
    """

    fixed = True

    def __init__(self, source: Source, features: TokenDataset | Semantics) -> None:
        if not getattr(source, "fixed", False):
            raise ValueError(
                f"{type(source).__name__} changes its images at random (crops, mirrors or colours): features cached "
                "beside them would be those of other images; switch that off, or compute features while training"
            )
        self.source, self.features = source, features
        self.path = getattr(source, "path", type(source).__name__)
        self.max_unreadable = getattr(source, "max_unreadable", ALLOWED_SHARE)
        self.rows = _rows_by_key(source, features) if isinstance(features, TokenDataset) else list(range(len(source)))
        if isinstance(features, Semantics) and len(features) != len(source):
            raise ValueError(f"features of {len(features)} images for a source of {len(source)}; they must pair")

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, draws: Sequence[Draw]) -> Examples:
        """The source's batch with float32 `features`."""
        examples: Examples = batch_of(self, draws)
        return examples

    def fetch(self, draws: Sequence[Draw]) -> Fetched:
        """What the source fetches, with the features of the images shown."""
        fetched = fetch(self.source, draws)
        if fetched.batch is None:
            return fetched
        features = self._features([self.rows[draw.index] for draw in fetched.draws])
        return fetched._replace(batch=replace(Examples.of(fetched.batch), features=features))

    def _features(self, rows: list[int]) -> Semantics:
        if isinstance(self.features, Semantics):
            return self.features[rows].to(torch.float32)
        patch_BND = self.features.batch(rows).tokens.data.float()
        grid = self.features.spec.grid
        assert not isinstance(grid[0], tuple)
        return Semantics(patch_BND, patch_BND.mean(1), grid)


def labelled_folder(
    path: str | Path,
    size: int,
    *,
    limit: int | None = None,
    ledger: Callable[[str | Path, int], Unreadable] | None = None,
) -> Labelled:
    """An image folder with its captions and labels in memory: shorter side resized to `size`, centre cropped.

    Captions are the names of the classes where there are only labels, and labels are unknown where there are none.
    limit   keeps the first so many images
    ledger  called with the folder and the number of images: counts those that cannot be read, which are left out

    Raises `ValueError` as `CaptionedFolder` does, `TooManyUnreadable`, and without a ledger `ImageError`.
    """
    files = find_images(path)
    notes = read_notes(path, files)
    captions = notes.captions or tuple(notes.classes[label] for label in notes.labels)
    keys, preprocess = [file.relative_to(path).as_posix() for file in files[:limit]], Preprocess(size)
    unreadable, images = None if ledger is None else ledger(path, len(keys)), {}
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
        labels_N=np.array([notes.labels[index] if notes.labels else -1 for index in images]),
        classes=notes.classes,
        keys=tuple(keys[index] for index in images),
    )


def _rows_by_key(source: Any, store: TokenDataset) -> list[int]:
    """Row of the store for every item of the source; `ValueError` where the store was made of other images."""
    if store.spec.discrete or store.spec.order == "scales":
        raise ValueError(f"{store.path}: holds codes, or positions of several scales; features are one latent grid")
    if not hasattr(source, "keys"):
        raise ValueError(f"{type(source).__name__} has no keys to find its images in {store.path} by")
    rows = {_bare(key): row for row, key in enumerate(store.keys)}
    missing = _refuse_quarantined(source, store, [key for key in source.keys if _bare(key) not in rows])
    if missing:
        raise ValueError(
            f"{store.path}: made of other images: {len(missing)} of {len(source.keys)} are not in it, the first is "
            f"{missing[0]!r}; encode this folder"
        )
    height, width = getattr(source, "image_size", store.spec.image_size)
    if height * store.spec.image_size[1] != width * store.spec.image_size[0]:
        raise ValueError(
            f"{store.path}: made of images of {store.spec.image_size} pixels, the source's are {(height, width)}: "
            "another shape, so their positions differ"
        )
    _compare_files(source, store, rows)
    return [rows.get(_bare(key), -1) for key in source.keys]


def _refuse_quarantined(source: Any, store: TokenDataset, missing: list[str]) -> list[str]:
    """Let the source pass over images that could not be encoded, where it can; the other missing ones remain."""
    refused = {_bare(key): item for key, item in store.quarantined.items()} if hasattr(source, "refuse") else {}
    indices = {key: index for index, key in enumerate(source.keys)}
    for key in missing:
        if _bare(key) in refused:
            item = refused[_bare(key)]
            source.refuse(indices[key], item.stage, f"{item.error} (when {store.path} was made, so it has no features)")
    return [key for key in missing if _bare(key) not in refused]


def _compare_files(source: Any, store: TokenDataset, rows: dict[str, int]) -> None:
    """Files, evenly spread over the source, must be those that were encoded."""
    files: Sequence[Path] = getattr(source, "files", ())
    if not files:
        return
    spread = np.unique(np.linspace(0, len(files) - 1, _COMPARED_FILES).astype(int))
    chosen = [index for index in spread if _bare(source.keys[index]) in rows]
    recorded = store.source_sha256([rows[_bare(source.keys[index])] for index in chosen])
    for index, sha256 in zip(chosen, recorded, strict=True):
        if sha256 and digest(files[index].read_bytes()) != sha256:
            raise ValueError(
                f"{store.path}: {files[index]} is not the file that was encoded (its SHA-256 differs); encode again"
            )


def _bare(key: str) -> str:
    """A key without the suffix of an image file: data sets in memory name the same images without one."""
    stem, dot, suffix = key.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in SUFFIXES else key
