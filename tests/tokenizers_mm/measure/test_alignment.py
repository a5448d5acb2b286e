from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenizers_mm.measure.alignment import alignment
from tokenizers_mm.semantics import Semantics


def features(patch_BND: Tensor, grid: tuple[int, ...]) -> Semantics:
    return Semantics(patch_BND, patch_BND.mean(1), grid)


def test_a_linear_image_of_the_teacher_is_aligned_and_noise_is_not() -> None:
    teacher = features(torch.randn(40, 16, 6) + 1, (4, 4))
    linear = features(teacher.patch_BND @ torch.randn(6, 9) * 100 + 5, (4, 4))
    good = alignment(linear, teacher)
    assert good.patch > 0.999
    assert good.pooled > 0.99
    noise = alignment(features(torch.randn(40, 16, 9), (4, 4)), teacher)
    assert noise.patch == pytest.approx(noise.mean_patch, abs=0.05)
    assert noise.mean_patch == good.mean_patch
    assert 0.4 < noise.mean_patch < 0.9


def test_many_channels_do_not_fit_what_is_not_there() -> None:
    """More channels than vectors would fit anything; the other half of the images tells."""
    teacher = features(torch.randn(20, 4, 5), (2, 2))
    assert alignment(features(torch.randn(20, 4, 300), (2, 2)), teacher).patch < 0.4


def test_the_teacher_comes_to_the_grid_of_the_tokenizer() -> None:
    teacher = features(torch.randn(30, 16, 6), (4, 4))
    coarse_BDhw = torch.nn.functional.avg_pool2d(teacher.patch_BND.transpose(1, 2).unflatten(2, (4, 4)), 2)
    own = features(coarse_BDhw.flatten(2).transpose(1, 2), (2, 2))
    assert alignment(own, teacher).patch > 0.999
    # Positions of a sequence have no place: all are compared with the pooled teacher.
    sequence = features(teacher.pooled_BD[:, None].expand(-1, 5, -1).contiguous(), (5,))
    assert alignment(sequence, teacher).patch > 0.999


def test_other_numbers_of_images_are_refused() -> None:
    one = features(torch.randn(3, 4, 2), (2, 2))
    with pytest.raises(ValueError, match="3 images and 2 of the teacher"):
        alignment(one, one[:2])
    with pytest.raises(ValueError, match="1 images and 1 of the teacher"):
        alignment(one[:1], one[:1])
