"""Latents of an autoencoder: vectors of the bottleneck, stacked in patches, of zero mean and unit variance.

Shape letters: B batch, N positions, D channels of a latent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenizers_mm.api import TokenSpec
from tokenizers_mm.blocks import WithLatents
from tokenizers_mm.geometry import FeatureGrid
from tokenizers_mm.models.autoencoder_config import AutoencoderConfig
from tokenizers_mm.models.vectors import Vectors


class AutoencoderLatents(WithLatents):
    """What an autoencoder does between the bottleneck's vectors and its latents; where it gives codes, nothing."""

    config: AutoencoderConfig
    spec: TokenSpec

    @property
    def takes_one_size(self) -> bool:
        """Whether images have to be of the spec's size: latents have statistics of their own at every position."""
        return self.config.latent_positions and not self.spec.discrete

    @property
    def latent_patch(self) -> int:
        """The bottleneck's vectors on each side of one latent."""
        return self.config.latent_patch

    def latents_of(self, vectors: Vectors) -> Vectors:
        """Latents of vectors; the inverse of `vectors_of`."""
        z_BND, grid = vectors.stacked(self.config.latent_patch)
        mean, std = self.statistics_on(grid)
        return Vectors((z_BND - mean) / std, grid)

    def vectors_of(self, latents: Vectors) -> Vectors:
        """The bottleneck's vectors that belong to latents."""
        mean, std = self.statistics_on(latents.grid)
        return Vectors(latents.z_BND.float() * std + mean, latents.grid).unstacked(self.config.latent_patch)

    def noised(self, vectors: Vectors) -> Vectors:
        """Vectors whose latents have noise, of a deviation drawn for every image up to `noise`."""
        z_BND, patch = vectors.z_BND, self.config.latent_patch
        like_BND, grid = Vectors(z_BND.detach(), vectors.grid).stacked(patch)
        sigma_B11 = self.config.noise * torch.rand(len(z_BND), 1, 1, device=z_BND.device)
        noise_BND = sigma_B11 * torch.randn_like(like_BND) * self.statistics_on(grid)[1]
        return Vectors(z_BND + Vectors(noise_BND, grid).unstacked(patch).z_BND, vectors.grid)

    def statistics_on(self, grid: FeatureGrid) -> tuple[Tensor, Tensor]:
        """Mean and deviation of latents on this grid, [D], or [N, D] of every position."""
        mean, std = self.statistics
        if mean.ndim == 1:
            return mean, std
        prefix = self.spec.layout == "nested" and math.prod(grid) <= self.spec.length
        if grid != self.spec.grid and not prefix:
            raise ValueError(f"grid={grid}: latent statistics are per position, of a grid of {self.spec.grid} only")
        return mean[: math.prod(grid)], std[: math.prod(grid)]
