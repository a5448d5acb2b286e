"""Images with captions and labels in memory: what probes, zero-shot classification and captioned training read.

Shape letters: N images, H and W pixels, C colour channels (3), F families.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Labelled", "MissingDataError"]


class MissingDataError(ModuleNotFoundError):
    """The package that ships a data set is not installed; the message says how to install it, or to point elsewhere."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Labelled:
    """Images and what is known about each.

    images_NHWC  uint8, three channels; may be a read-only view
    captions     one text per image
    labels_N     int64, index into `classes`; an image whose class is not known has none of them (-1)
    classes      names; the same for every split of a data set, whether or not an image of each is in it
    keys         unique names
    families_N   int64: images of one family are near-duplicates, which `folds` keeps on one side; by default each
                 image is a family of its own
    """

    images_NHWC: NDArray[np.uint8]
    captions: tuple[str, ...]
    labels_N: NDArray[np.int64]
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    families_N: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        """Refuse parts that do not pair."""
        images, count = self.images_NHWC, len(self.images_NHWC)
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] != 3:
            raise ValueError(f"images_NHWC is {images.dtype} {images.shape}: expected uint8 [N, H, W, 3]")
        if self.families_N is None:
            object.__setattr__(self, "families_N", np.arange(count))
        for name in ("captions", "labels_N", "keys", "families_N"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name}: {len(getattr(self, name))} for {count} images; they must pair one to one")
        if count and not -1 <= self.labels_N.min() <= self.labels_N.max() < len(self.classes):
            raise ValueError(
                f"labels_N spans {self.labels_N.min()}..{self.labels_N.max()}: expected -1..{len(self.classes) - 1}, "
                f"for {len(self.classes)} classes"
            )
        if len(set(self.keys)) != count:
            raise ValueError(f"keys: {len(set(self.keys))} different ones for {count} images; each needs its own")

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def subset(self, index: NDArray[Any] | Sequence[int]) -> Labelled:
        """These images, by number or by a mask, in this order."""
        chosen = np.asarray(index)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        assert self.families_N is not None
        return Labelled(
            images_NHWC=self.images_NHWC[chosen],
            captions=tuple(self.captions[i] for i in chosen),
            labels_N=self.labels_N[chosen],
            classes=self.classes,
            keys=tuple(self.keys[i] for i in chosen),
            families_N=self.families_N[chosen],
        )

    def tensor(self, index: slice | NDArray[Any] | Sequence[int] = slice(None)) -> Tensor:
        """Float images [B, 3, H, W] in [-1, 1], all of them or these."""
        import torch  # data sets are drawn and written without it

        chosen = self.images_NHWC[index if isinstance(index, slice) else np.asarray(index)]
        return torch.from_numpy(np.ascontiguousarray(chosen.transpose(0, 3, 1, 2)).astype(np.float32)) / 127.5 - 1

    def folds(self, k: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Cut into k parts for cross-validation: pairs (training indices, test indices), each image tested once.

        Families stay whole. Within each class families go, largest first, to the fold that has the fewest images of
        this class: folds agree in their shares of classes as well as families allow, and nothing here is random.
        """
        assert self.families_N is not None
        names, family_N, sizes_F = np.unique(self.families_N, return_inverse=True, return_counts=True)
        if not 2 <= k <= len(names):
            raise ValueError(f"k={k}: expected 2 folds or more, and at most one per family ({len(names)})")
        label_F = np.full(len(names), -1)
        label_F[family_N[::-1]] = self.labels_N[::-1]  # a family counts as the class of its first image
        fold_F = np.empty(len(names), dtype=np.int64)
        total_K = np.zeros(k, dtype=np.int64)
        for label in np.unique(label_F):
            members = np.flatnonzero(label_F == label)
            load_K = np.zeros(k, dtype=np.int64)
            for family in members[np.argsort(-sizes_F[members], kind="stable")]:
                fold = int(np.lexsort((total_K, load_K))[0])
                fold_F[family] = fold
                load_K[fold] += sizes_F[family]
                total_K[fold] += sizes_F[family]
        fold_N = fold_F[family_N]
        return [(np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)) for fold in range(k)]
