"""Classification results, of one split or cross-validated: accuracy beside everything that it must be compared with.

Every accuracy stands beside chance (one over the number of classes), the accuracy of always saying the most frequent
class, and the mean of the per-class accuracies, which no frequent class can lift.

Shape letters: N images, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Classification", "CrossValidation", "cross_validate"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Classification:
    """How well the labels of some test images were told.

    accuracy     share of the test images that are right, 0..1
    balanced     mean over classes of the share that is right
    chance       one over the number of classes
    majority     accuracy of always saying the class that is most frequent in training (zero-shot: in the test set)
    predicted_N  class said of every test image, int64
    method       what was done, with its settings
    """

    method: str
    accuracy: float
    balanced: float
    chance: float
    majority: float
    predicted_N: Tensor

    @classmethod
    def of(
        cls, method: str, predicted_N: Tensor, labels_N: Tensor, *, classes: int, most_frequent: int
    ) -> Classification:
        """Compare predictions with labels; `most_frequent` is the class that the majority baseline says."""
        right_N = (predicted_N == labels_N).double()
        of_class = [float(right_N[labels_N == label].mean()) for label in sorted(set(labels_N.tolist()))]
        return cls(
            method=method,
            accuracy=float(right_N.mean()),
            balanced=sum(of_class) / len(of_class),
            chance=1 / classes,
            majority=float((labels_N == most_frequent).double().mean()),
            predicted_N=predicted_N,
        )

    def record(self) -> dict[str, Any]:
        """Everything but the predictions, JSON-able."""
        return {name: value for name, value in vars(self).items() if name != "predicted_N"}


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossValidation:
    """Several classifications, each tested on images that the others train on.

    accuracy, balanced, chance, majority  means over folds
    spread                                standard deviation of the accuracy over folds
    """

    folds: tuple[Classification, ...]
    accuracy: float = field(init=False)
    balanced: float = field(init=False)
    chance: float = field(init=False)
    majority: float = field(init=False)
    spread: float = field(init=False)

    def __post_init__(self) -> None:
        """Compute the means."""
        for name in ("accuracy", "balanced", "chance", "majority"):
            values: list[float] = [getattr(fold, name) for fold in self.folds]
            object.__setattr__(self, name, sum(values) / len(values))
        accuracies = torch.tensor([fold.accuracy for fold in self.folds], dtype=torch.float64)
        object.__setattr__(self, "spread", float(accuracies.std()))

    def record(self) -> dict[str, Any]:
        """JSON-able, with every fold."""
        means = {name: value for name, value in vars(self).items() if name != "folds"}
        return means | {"folds": [fold.record() for fold in self.folds]}


def cross_validate(
    measure: Callable[..., Classification],
    features_ND: Tensor,
    labels_N: Tensor | NDArray[np.int64],
    folds: Sequence[tuple[Any, Any]],
    **options: Any,
) -> CrossValidation:
    """`linear_probe` or `nearest_neighbours` on every fold in turn.

    folds    pairs of (training indices, test indices), as `data.labelled.Labelled.folds` gives them
    options  of `measure`

    Raises `ValueError` where an image is in both parts of a fold, or there are fewer than 2 folds.
    """
    if len(folds) < 2:
        raise ValueError(f"{len(folds)} folds: cross-validation needs at least 2")
    labels_N, results = torch.as_tensor(labels_N), []
    for number, (train, test) in enumerate(folds):
        train, test = torch.as_tensor(train), torch.as_tensor(test)
        if bool(torch.isin(test, train).any()):
            raise ValueError(f"fold {number}: an image is in its training and in its test part")
        results.append(measure(features_ND[train], labels_N[train], features_ND[test], labels_N[test], **options))
    return CrossValidation(folds=tuple(results))
