"""PSNR, SSIM (Wang et al. 2004) and perceptual distance of reconstructions, per image.

Arithmetic is on the 0..255 scale. The original is uint8 by nature; the reconstruction is clamped and, by default,
rounded to uint8, because a file is what a reader gets.

Shape letters: B batch, C image channels, H and W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_mm.losses import Perceptual
from tokenizers_mm.measure.protocol import Original, Rounding, Window

__all__ = [
    "levels",
    "mean_squared_error",
    "original_levels",
    "perceptual_distance",
    "psnr",
    "psnr_of_mean_error",
    "ssim",
]

DATA_RANGE = 255.0
SSIM_WINDOW = {"gaussian": 11, "uniform": 7}
SSIM_SIGMA = 1.5


def levels(image_BCHW: Tensor, rounding: Rounding = "rounded") -> Tensor:
    """Images in [-1, 1] on the 0..255 scale, float64: clamped, then rounded, truncated or left as they are."""
    if not image_BCHW.is_floating_point() or image_BCHW.ndim != 4:
        kind = f"{image_BCHW.dtype} {tuple(image_BCHW.shape)}"
        raise ValueError(f"image_BCHW is {kind}: expected float images [B, C, H, W] in [-1, 1]")
    scaled_BCHW = (image_BCHW.double().clamp(-1, 1) + 1) * 127.5
    if rounding == "rounded":
        return scaled_BCHW.round()
    return scaled_BCHW.floor() if rounding == "truncated" else scaled_BCHW


def original_levels(image_BCHW: Tensor, original: Original = "exact") -> Tensor:
    """The original on the 0..255 scale: its exact levels, or those after a detour through float32 that truncates.

    Code that scales uint8 to [-1, 1] and back in float32 and then truncates (SEED-Voken's evaluation) loses a level
    wherever the detour ends just below it: 95 of the 256 levels come out one too low.
    """
    exact_BCHW = levels(image_BCHW, "rounded")
    if original == "exact":
        return exact_BCHW
    signed_BCHW = (exact_BCHW / 127.5 - 1).float()
    return ((signed_BCHW + 1) / 2 * 255).floor().double()


def mean_squared_error(
    image_BCHW: Tensor, target_BCHW: Tensor, rounding: Rounding = "rounded", original: Original = "exact"
) -> Tensor:
    """Squared error [B] on the 0..255 scale."""
    image, target = _pair(image_BCHW, target_BCHW, rounding, original)
    return (image - target).square().mean((1, 2, 3))


def psnr(
    image_BCHW: Tensor, target_BCHW: Tensor, rounding: Rounding = "rounded", original: Original = "exact"
) -> Tensor:
    """PSNR [B] in dB, data range 255; infinite where an image is exact. Average these: the mean of PSNRs."""
    image, target = _pair(image_BCHW, target_BCHW, rounding, original)
    return 10 * torch.log10(DATA_RANGE**2 / (image - target).square().mean((1, 2, 3)))


def psnr_of_mean_error(error_B: Tensor) -> float:
    """PSNR in dB of the mean squared error over images: up to several dB below the mean of PSNRs, so named apart."""
    return float(10 * torch.log10(DATA_RANGE**2 / error_B.double().mean()))


def ssim(
    image_BCHW: Tensor,
    target_BCHW: Tensor,
    rounding: Rounding = "rounded",
    original: Original = "exact",
    *,
    window: Window = "gaussian",
    data_range: float = DATA_RANGE,
) -> Tensor:
    """SSIM [B], mean over channels and places (Wang et al. 2004, equation 13).

    window      gaussian: 11 pixels, sigma 1.5, as published, around every pixel, images mirrored at their edges, which
                is torchmetrics' way; uniform: 7 pixels with unbiased variances wherever the window fits, which is
                scikit-image's default
    data_range  of values on the 0..255 scale. Published figures with 510 (a range of 2 for values in [0, 1]) are
                too high by about 0.1
    """
    image, target = _pair(image_BCHW, target_BCHW, rounding, original)
    size = SSIM_WINDOW[window]
    if min(image.shape[2:]) < size:
        raise ValueError(f"images of {tuple(image.shape[2:])} pixels: SSIM needs at least {size} a side")
    mean, unbiased = (_gaussian_mean, 1.0) if window == "gaussian" else (_uniform_mean, size**2 / (size**2 - 1))
    mean_x, mean_y = mean(image), mean(target)
    variance_x = (unbiased * (mean(image.square()) - mean_x.square())).clamp_min(0)
    variance_y = (unbiased * (mean(target.square()) - mean_y.square())).clamp_min(0)
    covariance = unbiased * (mean(image * target) - mean_x * mean_y)
    small_a, small_b = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    numerator = (2 * mean_x * mean_y + small_a) * (2 * covariance + small_b)
    denominator = (mean_x.square() + mean_y.square() + small_a) * (variance_x + variance_y + small_b)
    return (numerator / denominator).mean((1, 2, 3))


def _uniform_mean(x_BCHW: Tensor) -> Tensor:
    return F.avg_pool2d(x_BCHW, SSIM_WINDOW["uniform"], 1)


def _gaussian_mean(x_BCHW: Tensor) -> Tensor:
    """Rows, then columns: the window is a product."""
    size, channels = SSIM_WINDOW["gaussian"], x_BCHW.shape[1]
    half = size // 2
    weight_K = torch.exp(-(torch.arange(-half, half + 1).to(x_BCHW) / SSIM_SIGMA).square() / 2)
    weight_CK = (weight_K / weight_K.sum()).expand(channels, size)
    x_BCHW = F.pad(x_BCHW, (half, half, half, half), mode="reflect")
    x_BCHW = F.conv2d(x_BCHW, weight_CK[:, None, None, :], groups=channels)
    return F.conv2d(x_BCHW, weight_CK[:, None, :, None], groups=channels)


def perceptual_distance(
    distance: Perceptual, image_BCHW: Tensor, target_BCHW: Tensor, rounding: Rounding = "rounded"
) -> Tensor:
    """Perceptual distance [B] of what a viewer sees: clamped and rounded images."""
    image, target = _pair(image_BCHW, target_BCHW, rounding)
    distance_B: Tensor = distance((image / 127.5 - 1).float(), (target / 127.5 - 1).float())
    return distance_B.double()


def _pair(
    image_BCHW: Tensor, target_BCHW: Tensor, rounding: Rounding, original: Original = "exact"
) -> tuple[Tensor, Tensor]:
    if image_BCHW.shape != target_BCHW.shape:
        raise ValueError(f"image_BCHW {tuple(image_BCHW.shape)} and target_BCHW {tuple(target_BCHW.shape)} differ")
    return levels(image_BCHW, rounding), original_levels(target_BCHW, original)
