"""Feature alignment with a teacher: cosine of a tokenizer's vectors to the teacher's after the best linear map.

A tokenizer's positions and a teacher's have different widths, so the tokenizer's vectors are first mapped by ridge
regression, fitted on half of the images; the cosine is taken on the other half. The mean vector of the teacher, which
knows nothing of the image, has a cosine of its own: it stands beside.

Shape letters: B images, N positions, D the tokenizer's channels, E the teacher's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_mm.geometry import match_grid
from tokenizers_mm.semantics import Semantics

__all__ = ["Alignment", "alignment"]


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Mean cosines on images that the map was not fitted on.

    patch, pooled                    of the mapped vectors of positions and of whole images, to the teacher's
    mean_patch, mean_pooled          of the teacher's mean vector to the teacher's: what knowing nothing reaches
    """

    patch: float
    pooled: float
    mean_patch: float
    mean_pooled: float


def alignment(semantics: Semantics, teacher: Semantics, *, ridge: float = 1e-2) -> Alignment:
    """Fit on the images of even number, measure on those of odd number.

    The teacher's grid is brought to the tokenizer's as in training (`match_grid`); a sequence of positions has no
    places, so every position is compared with the pooled teacher.
    ridge  penalty on the map of standardised vectors, per vector

    Raises `ValueError` for other numbers of images, or fewer than two.
    """
    count = len(semantics)
    if count != len(teacher) or count < 2:
        raise ValueError(f"{count} images and {len(teacher)} of the teacher: expected the same images, 2 or more")
    if len(semantics.grid) == 2 and len(teacher.grid) == 2:
        target_BNE = match_grid(teacher.patch_BND.float(), teacher.grid, semantics.grid)
    else:
        target_BNE = teacher.pooled_BD[:, None].expand(-1, semantics.patch_BND.shape[1], -1)
    patch, mean_patch = _cosines(semantics.patch_BND, target_BNE, ridge)
    pooled, mean_pooled = _cosines(semantics.pooled_BD[:, None], teacher.pooled_BD[:, None], ridge)
    return Alignment(patch=patch, pooled=pooled, mean_patch=mean_patch, mean_pooled=mean_pooled)


def _cosines(x_BND: Tensor, target_BNE: Tensor, ridge: float) -> tuple[float, float]:
    """Cosine of the mapped vectors, and of the mean vector, on the images of odd number."""
    train, test = x_BND[::2].flatten(0, 1).double(), x_BND[1::2].flatten(0, 1).double()
    target, goal = target_BNE[::2].flatten(0, 1).double(), target_BNE[1::2].flatten(0, 1).double()
    mean, std, centre = train.mean(0), train.std(0, correction=0).clamp_min(1e-12), target.mean(0)
    train, test = (train - mean) / std, (test - mean) / std
    gram = train.T @ train + ridge * len(train) * torch.eye(train.shape[1], dtype=torch.float64, device=train.device)
    map_DE = torch.linalg.solve(gram, train.T @ (target - centre))
    mapped = F.cosine_similarity(test @ map_DE + centre, goal, dim=1).mean()
    return float(mapped), float(F.cosine_similarity(centre[None], goal, dim=1).mean())
