"""Batch norm of the latents that a generator and its tokenizer are trained on together (REPA-E).

Shape letters: B batch, N positions, D channels of a latent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantizers.distributed import processes, sum_over_processes

__all__ = ["LatentNorm"]


class LatentNorm(nn.Module):
    """Batch norm of latents [B, N, D] without scale and shift, which could make the velocity loss small by themselves.

    In training by the statistics of the batch of all processes, otherwise (and in `fixed`) by the running ones, which
    start at those of the tokenizer. Latents come in cut off from their graph, so no gradient goes through statistics.
    """

    mean_D: Tensor
    variance_D: Tensor

    def __init__(self, mean_D: Tensor, std_D: Tensor, *, momentum: float = 0.1, eps: float = 1e-4) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean_D", mean_D.detach().clone())
        self.register_buffer("variance_D", std_D.detach().square())

    def std(self) -> Tensor:
        """Deviations [D] that latents are divided by in evaluation."""
        return (self.variance_D + self.eps).sqrt()

    def fixed(self, z_BND: Tensor) -> Tensor:
        """Latents by the running statistics, which stay; gradients reach the latents."""
        return (z_BND - self.mean_D) / self.std()

    def forward(self, z_BND: Tensor) -> Tensor:
        """Latents by the batch's statistics, which move the running ones; in evaluation `fixed`."""
        if not self.training:
            return self.fixed(z_BND)
        z_ND = z_BND.detach().flatten(0, 1)
        count = len(z_ND) * processes()
        mean_D = sum_over_processes(z_ND.mean(0)) / processes()
        variance_D = sum_over_processes((z_ND - mean_D).square().mean(0)) / processes()
        with torch.no_grad():
            self.mean_D.lerp_(mean_D, self.momentum)
            self.variance_D.lerp_(variance_D * (count / max(count - 1, 1)), self.momentum)
        return (z_BND - mean_D) / (variance_D + self.eps).sqrt()
