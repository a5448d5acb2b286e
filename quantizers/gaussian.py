"""Diagonal Gaussian bottleneck: Auto-Encoding Variational Bayes (https://arxiv.org/abs/1312.6114).

The continuous member of the family: it receives mean and log-variance stacked on channels, samples in training, and
what travels is the mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quantizers.base import Quantized, Quantizer
from quantizers.means import mean_over

# The range every latent-diffusion implementation clamps log-variances to.
_LOGVAR_RANGE = (-30.0, 20.0)


class Gaussian(Quantizer):
    """Continuous bottleneck of `dim` channels; receives 2 * dim (mean, then log-variance).

    `loss` is the KL divergence from a standard normal in nats, averaged over latent elements.
    """

    kind = "gaussian"
    moments = 2

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim={dim}: expected at least 1 latent channel")
        self.dim, self.in_dim, self.codes = dim, self.moments * dim, ()

    def posterior(self, z_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and clamped log-variance, each [B, N, dim] float32, of vectors [B, N, 2 * dim]."""
        self._check_vectors(z_BND, self.in_dim)
        mean_BND, logvar_BND = z_BND.float().chunk(2, dim=-1)
        return mean_BND, logvar_BND.clamp(*_LOGVAR_RANGE)

    def sample(self, z_BND: Tensor, generator: torch.Generator) -> Tensor:
        """Latents [B, N, dim] drawn from the posterior; the noise is drawn on the generator's own device."""
        mean_BND, logvar_BND = self.posterior(z_BND)
        noise_BND = torch.randn(mean_BND.shape, generator=generator, device=generator.device).to(mean_BND.device)
        return mean_BND + (0.5 * logvar_BND).exp() * noise_BND

    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        mean_BND, logvar_BND = self.posterior(z_BND)
        kl_BND = 0.5 * (mean_BND.square() + logvar_BND.exp() - 1 - logvar_BND)
        loss = mean_over(kl_BND, mask_BN)
        sample_BND = mean_BND
        if self.training:
            sample_BND = mean_BND + (0.5 * logvar_BND).exp() * torch.randn_like(mean_BND)
        bits = loss.detach() * self.dim / math.log(2)
        return Quantized(sample_BND, None, loss, {"kl_bits_per_position": bits})

    def _encode(self, z_BND: Tensor) -> Tensor:
        return self.posterior(z_BND)[0]

    def _decode(self, codes_BNS: Tensor) -> Tensor:
        return codes_BNS.float()

    def _codes_of(self, q_BND: Tensor) -> Tensor:
        return q_BND
