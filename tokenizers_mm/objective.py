"""What a tokenizer is trained to do: reconstruct pixels and features through its bottleneck.

Every term is a mean over its elements, so weights mean the same at any image size and batch split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_mm.autoencoder import Autoencoder
from tokenizers_mm.losses.perceptual import Perceptual
from tokenizers_mm.train import Losses


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights of the terms.

    l1, l2           mean absolute and mean squared pixel error, pixels in [-1, 1]
    perceptual       feature distance; perceptual_network names it (see tokenizers_mm.losses.perceptual)
    bottleneck       the bottleneck's own loss: KL in nats per latent element, or commitment
    """

    l1: float = 1.0
    l2: float = 0.0
    perceptual: float = 0.0
    perceptual_network: str = "lpips-vgg"
    bottleneck: float = 1.0

    def __post_init__(self) -> None:
        """Refuse negative weights and an objective without reconstruction."""
        weights = {name: getattr(self, name) for name in ("l1", "l2", "perceptual", "bottleneck")}
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"{name}={weight}: a weight cannot be negative")
        if not self.l1 + self.l2 + self.perceptual:
            raise ValueError("l1, l2 and perceptual are all 0: at least one must be positive")


class ReconstructionObjective(nn.Module):
    """Maps image_BCHW to the weighted terms l1, l2, perceptual, and kl or commitment; terms of weight 0 are absent."""

    def __init__(self, autoencoder: Autoencoder, config: ObjectiveConfig, perceptual: Perceptual | None = None) -> None:
        super().__init__()
        if config.perceptual and perceptual is None:
            raise ValueError(f"perceptual={config.perceptual}: a perceptual network is needed")
        self.autoencoder, self.config, self.perceptual = autoencoder, config, perceptual

    def forward(self, image_BCHW: Tensor) -> Losses:
        """Reconstruct and compare."""
        recon_BCHW, quantized = self.autoencoder(image_BCHW)
        recon_BCHW = recon_BCHW.float()
        c, terms = self.config, {}
        if c.l1:
            terms["l1"] = c.l1 * F.l1_loss(recon_BCHW, image_BCHW)
        if c.l2:
            terms["l2"] = c.l2 * F.mse_loss(recon_BCHW, image_BCHW)
        if c.perceptual and self.perceptual is not None:
            terms["perceptual"] = c.perceptual * self.perceptual(recon_BCHW, image_BCHW).mean()
        if c.bottleneck:
            terms["commitment" if self.autoencoder.spec.discrete else "kl"] = c.bottleneck * quantized.loss
        return Losses(terms, quantized.stats)
