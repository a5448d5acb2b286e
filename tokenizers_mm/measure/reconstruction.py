"""How close reconstructions are: PSNR, SSIM (Wang et al. 2004) and a perceptual distance, per image.

Arithmetic is on the 0..255 scale. The original is uint8 by nature; the reconstruction is clamped and, by default,
rounded to uint8, because a file is what a reader gets.

Shape letters: B batch, C image channels, H and W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tokenizers_mm.losses.perceptual import Perceptual
from tokenizers_mm.measure.protocol import Rounding

__all__ = ["levels", "mean_squared_error", "perceptual_distance", "psnr", "psnr_of_mean_error", "ssim"]

DATA_RANGE = 255.0
SSIM_WINDOW = 11


def levels(image_BCHW: Tensor, rounding: Rounding = "rounded") -> Tensor:
    """Images in [-1, 1] on the 0..255 scale, float64: clamped, then rounded, truncated or left as they are."""
    if not image_BCHW.is_floating_point() or image_BCHW.ndim != 4:
        kind = f"{image_BCHW.dtype} {tuple(image_BCHW.shape)}"
        raise ValueError(f"image_BCHW is {kind}: expected float images [B, C, H, W] in [-1, 1]")
    scaled_BCHW = (image_BCHW.double().clamp(-1, 1) + 1) * 127.5
    if rounding == "rounded":
        return scaled_BCHW.round()
    return scaled_BCHW.floor() if rounding == "truncated" else scaled_BCHW


def mean_squared_error(image_BCHW: Tensor, target_BCHW: Tensor, rounding: Rounding = "rounded") -> Tensor:
    """Squared error [B] on the 0..255 scale."""
    image, target = _pair(image_BCHW, target_BCHW, rounding)
    return (image - target).square().mean((1, 2, 3))


def psnr(image_BCHW: Tensor, target_BCHW: Tensor, rounding: Rounding = "rounded") -> Tensor:
    """PSNR [B] in dB, data range 255; infinite where an image is exact. Average these: the mean of PSNRs."""
    image, target = _pair(image_BCHW, target_BCHW, rounding)
    return torch.as_tensor(
        peak_signal_noise_ratio(image, target, data_range=DATA_RANGE, reduction="none", dim=(1, 2, 3))
    )


def psnr_of_mean_error(error_B: Tensor) -> float:
    """PSNR in dB of the mean squared error over images: up to several dB below the mean of PSNRs, so named apart."""
    return float(10 * torch.log10(DATA_RANGE**2 / error_B.double().mean()))


def ssim(image_BCHW: Tensor, target_BCHW: Tensor, rounding: Rounding = "rounded") -> Tensor:
    """SSIM [B]: Gaussian window of 11 pixels (sigma 1.5), data range 255, mean over channels."""
    image, target = _pair(image_BCHW, target_BCHW, rounding)
    if min(image.shape[2:]) < SSIM_WINDOW:
        raise ValueError(f"images of {tuple(image.shape[2:])} pixels: SSIM needs at least {SSIM_WINDOW} a side")
    value = structural_similarity_index_measure(
        image, target, gaussian_kernel=True, sigma=1.5, kernel_size=SSIM_WINDOW, reduction="none", data_range=DATA_RANGE
    )
    assert isinstance(value, Tensor)
    return value.reshape(len(image))


def perceptual_distance(
    distance: Perceptual, image_BCHW: Tensor, target_BCHW: Tensor, rounding: Rounding = "rounded"
) -> Tensor:
    """Perceptual distance [B] of what a viewer sees: clamped and rounded images."""
    image, target = _pair(image_BCHW, target_BCHW, rounding)
    distance_B: Tensor = distance((image / 127.5 - 1).float(), (target / 127.5 - 1).float())
    return distance_B.double()


def _pair(image_BCHW: Tensor, target_BCHW: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor]:
    if image_BCHW.shape != target_BCHW.shape:
        raise ValueError(f"image_BCHW {tuple(image_BCHW.shape)} and target_BCHW {tuple(target_BCHW.shape)} differ")
    return levels(image_BCHW, rounding), levels(target_BCHW, "rounded")
