"""Weights of everything a tokenizer can be trained for."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers_mm.losses import AdversarialConfig, AlignmentConfig
from tokenizers_mm.towers import TowerConfig


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """The semantic head learns a teacher's features (TokLIP, https://arxiv.org/abs/2505.05422).

    pooled, patch  weights of the squared errors of pooled vectors at unit length, and of positions' vectors
    """

    teacher: TowerConfig
    pooled: float = 1000.0
    patch: float = 10.0

    def __post_init__(self) -> None:
        """Refuse weights that teach nothing."""
        if min(self.pooled, self.patch) < 0 or not self.pooled + self.patch > 0:
            raise ValueError(f"pooled={self.pooled}, patch={self.patch}: expected weights, at least one positive")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights of the terms. Every term is a mean over its elements, so a weight means the same at any image size.

    l1, l2           mean absolute and mean squared pixel error, pixels in [-1, 1]
    perceptual       feature distance; perceptual_network names it (see tokenizers_mm.losses.perceptual), and
                     perceptual_weights is a file with its weights, where they are not in their usual place
    bottleneck       the bottleneck's own loss: KL in nats per latent element, or commitment and entropy
    velocity         squared velocity error of a flow decoder, which has no other pixel term
    adversarial      term of a discriminator of reconstructions; None: no discriminator
    alignment        latents are taught what a frozen network knows; None: they are not
    text             image-text contrast of the semantic head, softmax or sigmoid as the head says; needs captions
    distillation     the semantic head is taught a frozen network's features
    """

    l1: float = 1.0
    l2: float = 0.0
    perceptual: float = 0.0
    perceptual_network: str = "lpips-vgg"
    perceptual_weights: str | None = None
    bottleneck: float = 1.0
    velocity: float = 0.0
    adversarial: AdversarialConfig | None = None
    alignment: AlignmentConfig | None = None
    text: float = 0.0
    distillation: DistillationConfig | None = None

    def __post_init__(self) -> None:
        """Refuse negative weights, an objective without a goal, and an adversary of nothing."""
        names = ("l1", "l2", "perceptual", "velocity", "text", "bottleneck")
        for name in names:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: a weight cannot be negative")
        taught = self.distillation or (self.alignment and self.alignment.weight)
        if not taught and not any(getattr(self, name) for name in names[:5]):
            raise ValueError("l1, l2, perceptual, velocity and text are all 0: at least one must be positive")
        if self.perceptual_weights is not None and not self.perceptual:
            raise ValueError(
                f"perceptual_weights={self.perceptual_weights}: perceptual is 0, so that no network needs them; "
                "drop them, or give perceptual a weight"
            )
        if self.adversarial is not None and not self.pixels:
            raise ValueError("adversarial: needs a pixel term (l1, l2 or perceptual) beside it")
        if self.velocity and self.pixels:
            raise ValueError(
                f"velocity={self.velocity}: a flow decoder has no reconstruction; set l1, l2, perceptual to 0"
            )

    @property
    def pixels(self) -> bool:
        """Whether the reconstruction is compared with the image."""
        return bool(self.l1 or self.l2 or self.perceptual)

    @property
    def draws(self) -> bool:
        """Whether the decoder is trained at all."""
        return self.pixels or bool(self.velocity)
