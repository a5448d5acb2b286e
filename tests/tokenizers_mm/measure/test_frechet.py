from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from tokenizers_mm.measure.frechet import FeatureStatistics, frechet_distance

# Distances of `features` (below) that torch-fidelity 0.4.0 (fid_statistics_to_metric) and clean-fid 0.1.35
# (frechet_distance) gave for the same tensors; the last two have fewer images than features.
PUBLISHED = [
    (400, 300, 48, 4.94107912, 4.94107912),
    (40, 30, 64, 23.95925456, 23.95925456),
    (10, 200, 64, 46.78875316, 46.78875316),
]


def features(count: int, dim: int, seed: int, scale: float = 1.0) -> Tensor:
    """Correlated and non-negative, like those of a network that ends in a ReLU."""
    index_BD = torch.arange(count * dim, dtype=torch.float64).view(count, dim)
    white_BD = torch.sin(index_BD * (12.9898 + seed)) * 43758.5453
    white_BD = (white_BD - white_BD.floor()) * 2 - 1
    mix_DD = torch.sin(torch.arange(dim * dim, dtype=torch.float64).view(dim, dim) * 78.233)
    return (scale * white_BD @ mix_DD - 0.5).relu()


@pytest.mark.parametrize(("n", "m", "dim", "torch_fidelity", "clean_fid"), PUBLISHED)
def test_published_programs_give_the_same(n: int, m: int, dim: int, torch_fidelity: float, clean_fid: float) -> None:
    a, b = FeatureStatistics.of(features(n, dim, 0)), FeatureStatistics.of(features(m, dim, 1, 1.1))
    assert frechet_distance(a, b) == pytest.approx(torch_fidelity, rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(clean_fid, rel=1e-4)


def test_the_formula_by_a_matrix_square_root() -> None:
    x, y = features(500, 24, 0).numpy(), features(700, 24, 1, 1.1).numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(a @ b)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b) - 2 * np.trace(root).real
    ours = frechet_distance(FeatureStatistics.of(torch.from_numpy(x)), FeatureStatistics.of(torch.from_numpy(y)))
    assert ours == pytest.approx(expected, rel=1e-9)


def test_known_gaussians() -> None:
    """Along one axis the distance is (difference of means)^2 + (difference of deviations)^2."""
    x = torch.randn(1000, 1, dtype=torch.float64)
    x = (x - x.mean()) / x.std()
    both = frechet_distance(FeatureStatistics.of(x * 2 + 5), FeatureStatistics.of(x * 0.5 - 1))
    assert both == pytest.approx(36 + 2.25, rel=1e-9)


@pytest.mark.parametrize("count", [5, 300])
def test_a_set_is_at_no_distance_from_itself_and_the_order_does_not_matter(count: int) -> None:
    x, y = features(count, 32, 0), features(count, 32, 1)
    a, b = FeatureStatistics.of(x), FeatureStatistics.of(y)
    assert frechet_distance(a, FeatureStatistics.of(x.flip(0))) < 1e-9
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) > 0.1


def test_parts_merge_into_the_whole_far_from_the_origin() -> None:
    x = features(1301, 8, 0) + 1e6
    streamed, merged, rest = FeatureStatistics(8), FeatureStatistics(8), FeatureStatistics(8)
    for part in torch.split(x, 7):
        streamed.update(part)
    merged.update(x[:30])
    rest.update(x[30:])
    merged.merge(rest)
    merged.merge(FeatureStatistics(8))
    for statistics in (streamed, merged):
        assert statistics.count == 1301
        torch.testing.assert_close(statistics.mean_D, x.mean(0))
        torch.testing.assert_close(statistics.covariance(), torch.cov(x.T), rtol=1e-7, atol=1e-7)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="features hold NaN or Inf"):
        FeatureStatistics.of(torch.full((2, 3), torch.inf))
    with pytest.raises(ValueError, match=r"features.*\(2, 4\): expected \[B, 3\]"):
        FeatureStatistics(3).update(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"torch\.int64 \(2, 3\): expected float"):
        FeatureStatistics.of(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"1 images:.*covariance needs.*2"):
        frechet_distance(FeatureStatistics.of(torch.zeros(1, 3)), FeatureStatistics.of(torch.zeros(2, 3)))
    with pytest.raises(ValueError, match=r"features.*3.*4 channels:.*extractor"):
        frechet_distance(FeatureStatistics.of(torch.zeros(2, 3)), FeatureStatistics.of(torch.zeros(2, 4)))
    with pytest.raises(ValueError, match="do not merge"):
        FeatureStatistics(3).merge(FeatureStatistics(4))
