"""A source of images with a teacher's features beside every image, computed once and kept in a token store.

Shape letters: B batch, N positions, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenizers_mm.data import ALLOWED_SHARE, SUFFIXES, Draw, Examples, Fetched, Source, batch_of, fetch
from tokenizers_mm.semantics import Semantics
from tokenizers_mm.store.dataset import TokenDataset
from tokenizers_mm.store.shards import digest

__all__ = ["WithFeatures"]

_COMPARED_FILES = 16


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


def _rows_by_key(source: Any, store: TokenDataset) -> list[int]:
    """Row of the store for every item of the source; `ValueError` where the store was made of other images."""
    if store.spec.discrete or store.spec.layout in ("scales", "parts"):
        raise ValueError(f"{store.path}: holds codes, or positions of several grids; features are one latent grid")
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
