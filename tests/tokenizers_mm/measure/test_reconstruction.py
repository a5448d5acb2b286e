from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tokenizers_mm.losses.perceptual import perceptual
from tokenizers_mm.measure.reconstruction import (
    levels,
    mean_squared_error,
    perceptual_distance,
    psnr,
    psnr_of_mean_error,
    ssim,
)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Four images on exact levels and noisy versions of them, each noisier than the one before."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 256, (4, 3, 24, 32), generator=generator) / 127.5 - 1
    noise = torch.randn(target.shape, generator=generator) * torch.tensor([0.01, 0.05, 0.1, 0.3]).view(4, 1, 1, 1)
    return target + noise, target


def flat(level: float) -> Tensor:
    return torch.full((1, 3, 16, 16), level / 127.5 - 1, dtype=torch.float64)


def test_psnr_by_hand() -> None:
    assert psnr(flat(110), flat(100)).item() == pytest.approx(20 * math.log10(25.5), abs=1e-5)
    assert psnr(flat(100), flat(100)).item() == math.inf


def test_rounding_is_what_it_says() -> None:
    image = flat(100.7)
    assert set(levels(image).flatten().tolist()) == {101.0}
    assert set(levels(image, "truncated").flatten().tolist()) == {100.0}
    assert levels(image, "float")[0, 0, 0, 0].item() == pytest.approx(100.7, abs=1e-9)
    assert set(levels(flat(300)).flatten().tolist()) == {255.0}
    assert psnr(image, flat(100), "truncated").item() == math.inf
    assert psnr(image, flat(100)).item() == pytest.approx(20 * math.log10(255), abs=1e-5)


def test_the_target_is_never_truncated() -> None:
    """A float32 original falls just below its level now and then; truncating it would invent an error."""
    every_level = (torch.arange(256, dtype=torch.float32) / 127.5 - 1).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert mean_squared_error(levels(every_level) / 127.5 - 1, every_level).item() == 0


def test_mean_of_psnr_is_not_psnr_of_mean_error() -> None:
    """Errors of 1e-2 and 1e-4 of the squared range: 30 dB against 23 dB."""
    error = torch.tensor([1e-2, 1e-4], dtype=torch.float64) * 255**2
    assert (10 * torch.log10(255**2 / error)).mean().item() == pytest.approx(30.0, abs=1e-9)
    assert psnr_of_mean_error(error) == pytest.approx(22.967086, abs=1e-6)


@pytest.mark.parametrize("data_range", [255.0, 510.0])
def test_agrees_with_torchmetrics(pair: tuple[Tensor, Tensor], data_range: float) -> None:
    image, target = map(levels, pair)
    given = {"reduction": "none", "data_range": data_range}
    reference = structural_similarity_index_measure(image, target, **given)
    assert ssim(*pair, data_range=data_range).tolist() == pytest.approx(reference.tolist(), abs=1e-12)
    # The edges count: without the mirrored ones it is another number.
    inner = structural_similarity_index_measure(image[..., 5:-5, 5:-5], target[..., 5:-5, 5:-5], **given)
    assert not torch.allclose(inner.double(), reference.double(), atol=1e-6)
    reference = peak_signal_noise_ratio(image, target, data_range=255.0, reduction="none", dim=(1, 2, 3))
    assert psnr(*pair).tolist() == pytest.approx(reference.tolist(), rel=1e-7)  # its constants are float32


def test_ssim_by_its_closed_form() -> None:
    """Of two flat images only the luminance term is left: (2ab + c) / (a^2 + b^2 + c)."""
    c = (0.01 * 255) ** 2
    assert ssim(flat(110), flat(100)).item() == pytest.approx((2 * 11000 + c) / (110**2 + 100**2 + c), abs=1e-6)


def test_more_noise_scores_worse(pair: tuple[Tensor, Tensor]) -> None:
    for measure in (psnr, ssim):
        values = measure(*pair)
        assert (values[:-1] > values[1:]).all()
    assert (mean_squared_error(*pair).diff() > 0).all()


def test_perceptual_distance_is_of_what_is_seen() -> None:
    distance = perceptual("lite0", stages=(0,), random_init=True)
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 256, (2, 3, 32, 32), generator=generator) / 127.5 - 1
    below_rounding = target + 0.3 / 127.5 * torch.ones_like(target)
    assert perceptual_distance(distance, below_rounding.clamp(-1, 1), target).tolist() == [0.0, 0.0]
    assert (perceptual_distance(distance, below_rounding.clamp(-1, 1), target, "float") > 0).all()


def test_bad_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.uint8 .* expected float images"):
        levels(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="differ"):
        psnr(torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="SSIM needs at least 11"):
        ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_a_uniform_window_fits_smaller_images_and_is_perfect_for_equal_ones() -> None:
    image = torch.rand(2, 3, 7, 9) * 2 - 1
    assert ssim(levels(image) / 127.5 - 1, image, window="uniform").tolist() == pytest.approx([1.0, 1.0], abs=1e-9)
    with pytest.raises(ValueError, match="SSIM needs at least 7 a side"):
        ssim(image[..., :6], image[..., :6], window="uniform")
