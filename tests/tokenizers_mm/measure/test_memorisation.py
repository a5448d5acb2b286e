from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenizers_mm.measure.memorisation import memorisation, nearest_distances


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))


def test_fresh_draws_of_the_same_world_pass(rows: Tensor) -> None:
    result = memorisation(rows[:500], rows[1000:], rows[500:1000])
    assert result.ratio == pytest.approx(1.0, abs=0.1)
    assert result.copies == 0.0
    assert result.passed


def test_training_images_passed_off_as_generated_are_found(rows: Tensor) -> None:
    result = memorisation(rows[1000:1500], rows[1000:], rows[500:1000])
    assert result.ratio == 0.0
    assert result.copies == 1.0
    assert result.test_copies == 0.0
    assert not result.passed


def test_a_tenth_of_copies_fails_though_the_median_looks_fine(rows: Tensor) -> None:
    generated = torch.cat([rows[:450], rows[1000:1050] + 1e-4])
    result = memorisation(generated, rows[1000:], rows[500:1000])
    assert 0.8 < result.ratio < 1.5
    assert result.copies == pytest.approx(0.1)
    assert not result.passed


def test_another_world_fails(rows: Tensor) -> None:
    result = memorisation(rows[:500] + 5, rows[1000:], rows[500:1000])
    assert result.ratio > 1.5
    assert not result.passed


def test_nearest_distances_agree_with_brute_force(rows: Tensor) -> None:
    query, train = rows[:300], rows[300:]
    reference = torch.cdist(query, train, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    torch.testing.assert_close(nearest_distances(query, train, block=77), reference, rtol=1e-5, atol=1e-6)
    assert nearest_distances(train[:10], train).tolist() == [0.0] * 10


def test_bad_features_are_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \[Q, F\].*\[T, F\].*equal F"):
        nearest_distances(rows, rows[:, :4])
    with pytest.raises(ValueError, match="test images are in the training set"):
        memorisation(rows[:10], rows[100:], rows[200:300])
