from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tokenizers_mm.measure.logistic import fit_logistic, fit_logistic_path


def blobs(count: int, classes: int = 4, dim: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated features of very different sizes, off the origin; classes overlap."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    x = centres[labels] + 1.5 * torch.randn(count, dim, generator=generator)
    mix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(98)) * torch.logspace(-2, 2, dim)
    return x @ mix + 5, labels


@pytest.mark.parametrize("l2", [1e-2, 1e-1, 10.0])
def test_the_minimum_is_that_of_scikit_learn(l2: float) -> None:
    x, labels = blobs(400)
    fit = fit_logistic(x, labels, 4, l2)
    standard = ((x.double() - x.double().mean(0)) / x.double().std(0, correction=0)).numpy()
    theirs = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-10, max_iter=10_000).fit(standard, labels.numpy())
    torch.testing.assert_close(fit.weight_DK.T, torch.from_numpy(theirs.coef_), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        fit.logits(x).softmax(1), torch.from_numpy(theirs.predict_proba(standard)), atol=1e-5, rtol=0
    )


def test_the_scale_of_a_feature_does_not_matter() -> None:
    x, labels = blobs(200)
    scaled = x.double() * torch.logspace(-3, 3, x.shape[1], dtype=torch.float64) - 7
    torch.testing.assert_close(
        fit_logistic(x, labels, 4, 0.01).logits(x),
        fit_logistic(scaled, labels, 4, 0.01).logits(scaled),
        atol=1e-3,
        rtol=0,
    )


def test_constant_features_and_fewer_images_than_features_are_fine() -> None:
    x, labels = blobs(16, dim=40)
    x[:, 3] = 0.1
    fit = fit_logistic(x, labels, 4, 1e-3)
    assert bool(torch.isfinite(fit.weight_DK).all())
    assert bool((fit.logits(x).argmax(1) == labels).all())
    changed = x.clone()
    changed[:, 3] = 1e9
    torch.testing.assert_close(fit.logits(changed), fit.logits(x))


def test_a_path_gives_what_single_fits_give_from_the_strongest_to_the_weakest() -> None:
    x, labels = blobs(300)
    path = list(fit_logistic_path(x, labels, 4, (1e-2, 1.0, 1e-2)))
    assert [fit.l2 for fit in path] == [1.0, 1e-2]
    for fit in path:
        torch.testing.assert_close(fit.weight_DK, fit_logistic(x, labels, 4, fit.l2).weight_DK, atol=1e-4, rtol=1e-3)
    assert path[0].weight_DK.norm() < path[1].weight_DK.norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.full((6, 2), torch.nan)}, "x_ND holds NaN or Inf"),
        ({"x": torch.zeros(5, 2)}, r"x_ND is torch\.float32 \(5, 2\) and labels_N \(6,\)"),
        ({"labels": torch.tensor([0, 1, 2, 0, 1, 3])}, r"labels_N lie in \[0, 3\] and classes=3"),
        ({"l2": 0.0}, r"l2s=\(0\.0,\): expected positive penalties"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {"x": torch.randn(6, 2), "labels": torch.tensor([0, 1, 2, 0, 1, 2]), "l2": 0.1} | change
    with pytest.raises(ValueError, match=message):
        fit_logistic(arguments["x"], arguments["labels"], 3, arguments["l2"])  # type: ignore[arg-type]
