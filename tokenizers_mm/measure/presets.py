"""Evaluation presets: what well-known evaluators do to images, so that a figure can be compared with theirs.

The same reconstructions get three different scores from three public programs. What follows was read in their code:

    default         shorter side bicubic (Pillow), centre crop; rounded; SSIM Gaussian 11, range 255; FID of
                    torch-fidelity
    adm             guided-diffusion's crop, as LlamaGen measures with it: halved by averaging while at least twice too
                    large, then bicubic, crop offset rounded down; trunc(127.5 x + 128), which is rounding; scikit-image
                    SSIM with range 2 for values in [0, 1] (too high by about 0.1). Its FID: TensorFlow's Inception
                    against the npz of the reference set
    torch-fidelity  1d-tokenizer: bicubic, centre crop; reconstructions truncated to uint8; FID only, so PSNR and SSIM
                    are those of the truncated images by the default's rules
    seed            SEED-Voken (Open-MAGVIT2): bilinear with antialiasing (Pillow), centre crop; reconstruction and
                    original both truncated from float32; scikit-image SSIM; FID of pytorch-fid, on floats. Its IBQ
                    configurations resize without antialiasing (OpenCV) instead, which no preset here does
    bsq-vit         Lanczos (Pillow), centre crop; floats everywhere; SSIM Gaussian 11; FID of pytorch-fid, on floats

All average PSNR and SSIM over images (SEED-Voken over batches, the same where batches are equal). The reference is what
you pass as images: the original crops, never a file of statistics of other images.

Shape letters: H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from tokenizers_mm.data import Pixels, centre_crop, resize_shorter, resized_shape
from tokenizers_mm.measure.protocol import Original, Protocol, Rounding, Window

__all__ = ["PRESETS", "Preset", "preset"]

Resize = Literal["bicubic", "bilinear", "lanczos", "adm"]

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Conventions of one evaluator.

    resize, rounding, frechet_rounding, original, ssim, ssim_range  as in `Protocol`
    inception   extractor that stands for the evaluator's FID
    perceptual  distance its paper reports; empty where it reports none
    """

    name: str
    resize: Resize = "bicubic"
    rounding: Rounding = "rounded"
    frechet_rounding: Rounding = "rounded"
    original: Original = "exact"
    ssim: Window = "gaussian"
    ssim_range: float = 255.0
    inception: str = "inception"
    perceptual: str = ""

    def __call__(self, image: Pixels, size: int) -> Pixels:
        """The size x size pixels (uint8 [size, size, 3]) that this evaluator measures on.

        Raises `ValueError` on an image too narrow to be resized.
        """
        if image.ndim != 3 or image.dtype != np.uint8 or size < 1:
            raise ValueError(f"image is {image.dtype} {image.shape}, size={size}: expected uint8 [H, W, 3], size >= 1")
        if self.resize == "adm":
            return _adm_crop(image, size)
        return centre_crop(resize_shorter(image, size, resample=_FILTERS[self.resize]), size, size)

    def protocol(self, reference: str, size: int | None) -> Protocol:
        """Protocol of figures on images that went through `self(image, size)`; None: images as they are."""
        how = "halved by box while >= 2x, then bicubic" if self.resize == "adm" else f"{self.resize}, antialiased"
        where = "centre, offset rounded down" if self.resize == "adm" else "centre"
        return Protocol(
            reference=reference,
            resize="none" if size is None else f"shorter side to {size}, {how}",
            crop="none" if size is None else f"{where} {size} x {size}",
            preset=self.name,
            rounding=self.rounding,
            frechet_rounding=self.frechet_rounding,
            original=self.original,
            ssim=self.ssim,
            ssim_range=self.ssim_range,
        )


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(name="default"),
        Preset(name="adm", resize="adm", ssim="uniform", ssim_range=510.0),
        Preset(name="torch-fidelity", rounding="truncated", frechet_rounding="truncated"),
        Preset(
            name="seed",
            resize="bilinear",
            rounding="truncated",
            frechet_rounding="float",
            original="truncated",
            ssim="uniform",
            inception="inception-pytorch",
            perceptual="lpips-alex",
        ),
        Preset(
            name="bsq-vit",
            resize="lanczos",
            rounding="float",
            frechet_rounding="float",
            inception="inception-pytorch",
            perceptual="lpips-alex",
        ),
    )
}


def preset(name: str) -> Preset:
    """The preset of that name; `ValueError` lists those there are."""
    if name not in PRESETS:
        raise ValueError(f"preset={name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _adm_crop(pixels: Pixels, size: int) -> Pixels:
    """Halve, resize, crop: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv 2105.05233."""
    resized_shape(pixels, size)  # refuses what is too narrow
    image = Image.fromarray(pixels)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    top, left = (image.height - size) // 2, (image.width - size) // 2
    return np.array(image)[top : top + size, left : left + size]
