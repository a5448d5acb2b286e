"""Frechet distance between two sets of features, each summed up as a Gaussian.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", arXiv 1706.08500:

    d^2 = |mean_a - mean_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2))

It is called FID only in the features of the 2015 Inception network, and by its extractor's name otherwise. The last
trace is the sum of the singular values of F_a^T F_b, where C = F F^T: exact also where there are fewer images than
features and the covariances are singular, which makes a matrix square root unreliable. Statistics are float64, and
those of parts of a set merge into those of the set.

The distance of finite samples is biased upwards and the less the larger they are: compare equal numbers of images,
and read it beside the distance between two sets of real images.

Shape letters: B batch, D features, R rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["FeatureStatistics", "frechet_distance"]

_BLOCK = 512


class FeatureStatistics:
    """Number, mean and scatter (sum of squared deviations) of feature vectors, batch by batch, in float64.

    Features are squared only after the mean of their batch is taken off, so that a large common offset does no harm
    (Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979).
    """

    def __init__(self, dim: int) -> None:
        self.dim, self._count = dim, 0
        self._mean_D = torch.zeros(dim, dtype=torch.float64)
        self._scatter_DD = torch.zeros(dim, dim, dtype=torch.float64)
        # Rows wait until they outnumber the features: a scatter matrix is large, and few rows are a factor of it.
        self._waiting: list[Tensor] = []

    @property
    def count(self) -> int:
        """Vectors so far."""
        return self._count + sum(map(len, self._waiting))

    @property
    def mean_D(self) -> Tensor:  # noqa: N802
        """Mean of the vectors so far."""
        return self._whole()._mean_D

    @classmethod
    def of(cls, features_BD: Tensor) -> FeatureStatistics:
        """Statistics of one tensor."""
        if features_BD.ndim != 2 or not features_BD.is_floating_point():
            raise ValueError(f"features are {features_BD.dtype} {tuple(features_BD.shape)}: expected float [B, D]")
        statistics = cls(features_BD.shape[1])
        statistics.update(features_BD)
        return statistics

    def update(self, features_BD: Tensor) -> None:
        """Add a batch; `ValueError` where it is not [B, D] or not finite."""
        if features_BD.ndim != 2 or features_BD.shape[1] != self.dim:
            raise ValueError(f"features have shape {tuple(features_BD.shape)}: expected [B, {self.dim}]")
        x_BD = features_BD.detach().to("cpu", torch.float64, copy=True)
        if not bool(torch.isfinite(x_BD).all()):
            raise ValueError("features hold NaN or Inf: their statistics would too")
        self._waiting.append(x_BD)
        if self.count - self._count > max(_BLOCK, self.dim):
            self._flush()

    def merge(self, other: FeatureStatistics) -> None:
        """Add the images of `other`, for instance those of another process."""
        if other.dim != self.dim:
            raise ValueError(f"statistics of {self.dim} and of {other.dim} features do not merge")
        if other._count:
            self._add(other._count, other._mean_D, other._scatter_DD)
        for x_BD in other._waiting:
            self.update(x_BD)

    def covariance(self) -> Tensor:
        """Unbiased covariance [D, D]; `ValueError` before there are two images."""
        if self.count < 2:
            raise ValueError(f"{self.count} images: a covariance needs at least 2")
        return self._whole()._scatter_DD / (self.count - 1)

    def factor(self) -> Tensor:
        """F [D, R] with F F^T = covariance, R its rank, or the number of vectors where those are few."""
        if not self._count and self.count > 1:
            x_ND = torch.cat(self._waiting)
            deviation_DN: Tensor = (x_ND - x_ND.mean(0)).T
            return deviation_DN / math.sqrt(len(x_ND) - 1)
        variance_D, axes_DD = torch.linalg.eigh(self.covariance())
        # Below this, an eigenvalue is rounding of the largest.
        kept = variance_D > variance_D[-1] * len(variance_D) * torch.finfo(torch.float64).eps
        factor_DR: Tensor = axes_DD[:, kept] * variance_D[kept].sqrt()
        return factor_DR

    def _whole(self) -> FeatureStatistics:
        """The same with no rows waiting."""
        if not self._waiting:
            return self
        whole = FeatureStatistics(self.dim)
        whole.merge(self)
        whole._flush()
        return whole

    def _flush(self) -> None:
        if not self._waiting:
            return
        x_BD = torch.cat(self._waiting)
        self._waiting.clear()
        if len(x_BD):
            mean_D = x_BD.mean(0)
            x_BD = x_BD - mean_D
            self._add(len(x_BD), mean_D, x_BD.T @ x_BD)

    def _add(self, count: int, mean_D: Tensor, scatter_DD: Tensor) -> None:
        total = self._count + count
        delta_D = mean_D - self._mean_D
        self._scatter_DD = self._scatter_DD + scatter_DD + torch.outer(delta_D, delta_D) * (self._count * count / total)
        self._mean_D = self._mean_D + delta_D * (count / total)
        self._count = total


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The squared distance d^2 above, never negative: what is called FID is this, without a root."""
    if a.dim != b.dim:
        raise ValueError(f"features have {a.dim} and {b.dim} channels: use one extractor for both")
    shift = (a.mean_D - b.mean_D).square().sum()
    spread = a.covariance().trace() + b.covariance().trace()
    shared = torch.linalg.svdvals(a.factor().T @ b.factor()).sum()
    return max(0.0, float(shift + spread - 2 * shared))
