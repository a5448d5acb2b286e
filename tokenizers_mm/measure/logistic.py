"""Multinomial logistic regression with an L2 penalty, to its minimum: the linear probe's classifier.

    loss(W, b) = mean over images of cross-entropy(x W + b) + l2 / 2 * |W|^2

on features standardised by their own mean and standard deviation; the bias b is not penalised. The loss is convex, so
the result is a property of the features and not of a learning rate. It is minimised in float64 with L-BFGS along the
principal axes of the features, each scaled by its curvature: the same minimum, in a tenth of the steps.

Shape letters: N images, D features, R principal axes, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Logistic", "fit_logistic", "fit_logistic_path"]

_ITERATIONS = 200
_GRADIENT = 1e-6


@dataclass(frozen=True, eq=False)
class Logistic:
    """A fitted classifier: `mean_D` and `scale_D` standardise features, `weight_DK` and `bias_K` make logits."""

    mean_D: Tensor
    scale_D: Tensor
    weight_DK: Tensor
    bias_K: Tensor
    l2: float

    def logits(self, x_ND: Tensor) -> Tensor:
        """Logits [N, K] in float64 of features that are not standardised."""
        return ((x_ND.double() - self.mean_D) / self.scale_D) @ self.weight_DK + self.bias_K


def fit_logistic(x_ND: Tensor, labels_N: Tensor, classes: int, l2: float) -> Logistic:
    """Fit one classifier; see `fit_logistic_path`."""
    return next(fit_logistic_path(x_ND, labels_N, classes, (l2,)))


def fit_logistic_path(x_ND: Tensor, labels_N: Tensor, classes: int, l2s: Sequence[float]) -> Iterator[Logistic]:
    """Fit a classifier for every penalty in `l2s`, from the strongest to the weakest, each starting at the last.

    labels_N  int64 in 0..classes - 1

    They are fitted as they are asked for. Raises `ValueError` on shapes, labels or penalties that mean nothing.
    """
    _check(x_ND, labels_N, classes, l2s)
    x_ND = x_ND.detach().double()
    mean_D, std_D = x_ND.mean(0), x_ND.std(0, correction=0)
    # A feature that does not vary says nothing; dividing by its rounding noise would make it as loud as the others.
    scale_D = torch.where(std_D > 1e-7 * mean_D.abs(), std_D, torch.inf)
    x_ND = (x_ND - mean_D) / scale_D
    variance_D, axes_DR = torch.linalg.eigh(x_ND.T @ x_ND / len(x_ND))
    kept = variance_D > 1e-10 * variance_D[-1].clamp_min(1e-300)
    variance_R, axes_DR = variance_D[kept], axes_DR[:, kept]
    x_NR = x_ND @ axes_DR
    weight_RK, bias_K = x_NR.new_zeros(x_NR.shape[1], classes), x_NR.new_zeros(classes)
    for l2 in sorted(set(l2s), reverse=True):
        weight_RK, bias_K = _minimise(x_NR, labels_N, l2, variance_R, (weight_RK, bias_K))
        yield Logistic(mean_D, scale_D, axes_DR @ weight_RK, bias_K, l2)


def _minimise(
    x_NR: Tensor, labels_N: Tensor, l2: float, variance_R: Tensor, start: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Weights [R, K] and bias [K] at the minimum. The gradient is written out: no graph is kept."""
    classes, count = len(start[1]), len(x_NR)
    # Curvature along an axis when all classes are equally likely; the bias is an axis of variance 1.
    curvature_R1 = (torch.cat([variance_R, variance_R.new_ones(1)]) * (classes - 1) / classes**2)[:, None]
    curvature_R1[:-1] += l2
    scale_R1 = curvature_R1.rsqrt()
    free_RK = (torch.cat([start[0], start[1][None]]) / scale_R1).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free_RK],
        max_iter=_ITERATIONS,
        tolerance_grad=_GRADIENT,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    target_NK = F.one_hot(labels_N, classes).to(x_NR)

    @torch.no_grad()
    def closure() -> float:
        weight_RK = free_RK * scale_R1
        log_p_NK = F.log_softmax(x_NR @ weight_RK[:-1] + weight_RK[-1], 1)
        error_NK = (log_p_NK.exp() - target_NK) / count
        gradient_RK = torch.cat([x_NR.T @ error_NK + l2 * weight_RK[:-1], error_NK.sum(0, keepdim=True)])
        free_RK.grad = gradient_RK * scale_R1
        loss = -(log_p_NK * target_NK).sum() / count + l2 / 2 * weight_RK[:-1].square().sum()
        return float(loss)

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    weight_RK = free_RK.detach() * scale_R1
    return weight_RK[:-1], weight_RK[-1]


def _check(x_ND: Tensor, labels_N: Tensor, classes: int, l2s: Sequence[float]) -> None:
    if x_ND.ndim != 2 or not x_ND.is_floating_point() or labels_N.shape != x_ND.shape[:1] or not len(x_ND):
        raise ValueError(
            f"x_ND is {x_ND.dtype} {tuple(x_ND.shape)} and labels_N {tuple(labels_N.shape)}: expected float features "
            "[N, D] and labels [N], N at least 1"
        )
    if not bool(torch.isfinite(x_ND).all()):
        raise ValueError("x_ND holds NaN or Inf: a classifier of these features would be one of nothing")
    if classes < 2 or int(labels_N.min()) < 0 or int(labels_N.max()) >= classes:
        raise ValueError(
            f"labels_N lie in [{int(labels_N.min())}, {int(labels_N.max())}] and classes={classes}: expected at least "
            "2 classes and labels 0..classes - 1"
        )
    if not l2s or not all(0 < l2 < math.inf for l2 in l2s):
        raise ValueError(f"l2s={tuple(l2s)}: expected positive penalties (without one there may be no minimum)")
