"""Memorisation test by nearest neighbours: did a generator copy its training set?

Generated images that lie much closer to the training set than unseen real images do are copies; much farther, and they
are not of this world. Both are seen in the ratio of median distances, which is about 1 for an honest generator.

Shape letters: Q queries, T training images, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Memorisation", "memorisation", "nearest_distances"]

RATIO_RANGE = (0.8, 1.5)
COPIES_ALLOWED = 0.05


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Distances to the nearest training image.

    generated, test          median distance of generated and of unseen real images
    copies, test_copies      share of each that lies closer than `copy_distance`, which counts as a copy
    """

    generated: float
    test: float
    copies: float
    test_copies: float
    copy_distance: float

    @property
    def ratio(self) -> float:
        """Generated over test: about 0 for copies, about 1 for an honest generator."""
        return self.generated / self.test

    @property
    def passed(self) -> bool:
        """Ratio within 0.8 to 1.5 and at most 5% copies."""
        return RATIO_RANGE[0] <= self.ratio <= RATIO_RANGE[1] and self.copies <= COPIES_ALLOWED


def nearest_distances(query_QF: Tensor, train_TF: Tensor, *, block: int = 1024) -> Tensor:
    """Euclidean distance [Q] of every query to its nearest training row, in blocks of bounded memory.

    The neighbour is found by matrix product; its distance is then computed exactly, so that a copy is at zero.
    """
    if query_QF.ndim != 2 or train_TF.ndim != 2 or query_QF.shape[1] != train_TF.shape[1] or not len(train_TF):
        shapes = f"{tuple(query_QF.shape)} and {tuple(train_TF.shape)}"
        raise ValueError(f"features have shapes {shapes}: expected [Q, F] and [T, F] of equal F, T at least 1")
    half_norm_T = train_TF.square().sum(1) / 2
    nearest = [(half_norm_T - part @ train_TF.T).argmin(1) for part in torch.split(query_QF, block)]
    distance_Q: Tensor = torch.linalg.vector_norm(query_QF - train_TF[torch.cat(nearest)], dim=1)
    return distance_Q


def memorisation(generated_QF: Tensor, train_TF: Tensor, test_QF: Tensor, *, copy_share: float = 0.05) -> Memorisation:
    """Compare generated with unseen real images, in the features of one extractor (a judge, for instance).

    copy_share  a distance below this share of the median test distance counts as a copy

    Raises `ValueError` where the test images are themselves in the training set.
    """
    generated_Q, test_Q = nearest_distances(generated_QF, train_TF), nearest_distances(test_QF, train_TF)
    test = float(test_Q.median())
    if test == 0:
        raise ValueError("at least half of the test images are in the training set: use images that are not")
    copy_distance = copy_share * test
    return Memorisation(
        generated=float(generated_Q.median()),
        test=test,
        copies=float((generated_Q <= copy_distance).double().mean()),
        test_copies=float((test_Q <= copy_distance).double().mean()),
        copy_distance=copy_distance,
    )
