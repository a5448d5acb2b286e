"""A discriminator with its losses: the other side of adversarial training.

Shape letters: B batch, C image channels, H and W pixels, D random numbers of one image.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from tokenizers_mm.losses.adversarial import (
    AdversarialLoss,
    consistency_penalty,
    discriminator_loss,
    divergence,
    generator_loss,
    lecam_penalty,
    logit_statistics,
    r1_penalty,
)
from tokenizers_mm.losses.augment import Augmentation, augment, draw
from tokenizers_mm.losses.terms import Losses
from tokenizers_mm.nets import Discriminator, DiscriminatorConfig, PatchConfig

__all__ = ["AdversarialConfig", "Adversary"]


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """How a discriminator is trained, and the tokenizer against it.

    weight         of the tokenizer's adversarial term; times the adaptive weight if `adaptive`
    loss           "hinge"; "non_saturating"; "vanilla" (cross-entropy, but -logit for the tokenizer)
    adaptive       keep the term's gradient as long as that of the reconstruction; the factor never exceeds max_weight
    start          step from which the tokenizer has the term; the discriminator trains from `warmup` steps before
    lecam          weight of the LeCam penalty; lecam_decay  of its moving averages
    r1             weight of the R1 penalty, computed every r1_every steps and then r1_every times as large
    consistency    weight of the balanced consistency penalty, for real and for fake images; two more passes
    augment        what both kinds of images undergo before the discriminator
    learning_rate, betas, clip    of the discriminator's own optimiser, and its largest gradient norm
    bound          training stops where |logit| exceeds it
    """

    weight: float = 0.5
    loss: AdversarialLoss = "hinge"
    adaptive: bool = True
    max_weight: float = 1e4
    start: int = 0
    warmup: int = 0
    lecam: float = 0.0
    lecam_decay: float = 0.99
    r1: float = 0.0
    r1_every: int = 16
    consistency: float = 0.0
    augment: tuple[Augmentation, ...] = ()
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)
    clip: float = 1.0
    bound: float = 1e3
    discriminator: DiscriminatorConfig = field(default_factory=PatchConfig)

    def __post_init__(self) -> None:
        """Refuse values no run can use."""
        for name in ("weight", "start", "warmup", "lecam", "r1", "consistency"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 0")
        for name in ("max_weight", "r1_every", "learning_rate", "clip", "bound"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a positive number")
        if not all(0 <= decay < 1 for decay in (*self.betas, self.lecam_decay)):
            raise ValueError(f"betas={self.betas}, lecam_decay={self.lecam_decay}: expected decays in [0, 1)")
        if self.warmup > self.start:
            raise ValueError(f"warmup={self.warmup}: there are only start={self.start} steps before the start")


class Adversary(nn.Module):
    """A discriminator with its losses: a `Player` of `tokenizers_mm.training`.

    Nothing in it changes within a step of the optimiser, so accumulation equals one large batch: `begin_step` says
    which step it is (R1 is due at some), `end_step` moves averages and spectral norms.
    """

    averages: Tensor
    known: Tensor

    def __init__(self, discriminator: nn.Module, config: AdversarialConfig) -> None:
        super().__init__()
        self.discriminator, self.config, self.step = discriminator, config, 0
        self.learning_rate, self.betas, self.clip = config.learning_rate, config.betas, config.clip
        self.register_buffer("averages", torch.zeros(2))  # of real and fake logits
        self.register_buffer("known", torch.zeros((), dtype=torch.bool))

    def active(self, step: int) -> bool:
        """Whether the adversarial term is part of the tokenizer's loss at this step."""
        return step >= self.config.start

    def trains(self, step: int) -> bool:
        """Whether the discriminator is trained at this step."""
        return step >= self.config.start - self.config.warmup

    def generator_loss(self, fake_BCHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The tokenizer's adversarial term, unweighted. Gradients reach the images alone, and no buffer changes.

        generator  where the augmentation's random numbers come from
        """
        net = self.discriminator
        state = {name: p.detach() for name, p in net.named_parameters()}
        state |= {name: buffer.clone() for name, buffer in net.named_buffers()}
        logits = functional_call(net, state, (self._augmented(fake_BCHW, self._draw(fake_BCHW, generator)),))
        return generator_loss(logits, self.config.loss)

    def forward(self, real_BCHW: Tensor, fake_BCHW: Tensor, generator: torch.Generator | None = None) -> Losses:
        """The discriminator's weighted terms: "discriminator"; "lecam", "r1", "consistency" where asked for and due.

        Gradients reach the discriminator alone. A real image and its reconstruction are augmented alike. Statistics:
        "logits_real", "logits_fake" (means), "discriminator_accuracy" (of the signs: 0.5 is blind; 1 for long is a
        discriminator that has won) and "discriminator_largest" |logit|.
        """
        c, penalised = self.config, bool(self.config.r1) and self.step % self.config.r1_every == 0
        real_BCHW, uniform_BD = real_BCHW.detach().requires_grad_(penalised), self._draw(real_BCHW, generator)
        # The fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH) if penalised else nullcontext():
            real: list[Tensor] = self.discriminator(self._augmented(real_BCHW, uniform_BD))
        fake: list[Tensor] = self.discriminator(self._augmented(fake_BCHW.detach(), uniform_BD))
        terms = {"discriminator": discriminator_loss(real, fake, c.loss)}
        if c.lecam:
            penalty = lecam_penalty(real, fake, *self.averages)
            terms["lecam"] = c.lecam * torch.where(self.known, penalty, torch.zeros_like(penalty))
        if penalised:
            terms["r1"] = c.r1 * c.r1_every * r1_penalty(real, real_BCHW)
        if c.consistency:
            penalties = [
                consistency_penalty(logits, self.discriminator(self._changed(image_BCHW.detach(), generator)))
                for logits, image_BCHW in ((real, real_BCHW), (fake, fake_BCHW))
            ]
            terms["consistency"] = c.consistency * (penalties[0] + penalties[1])
        return Losses(terms, logit_statistics(real, fake))

    def begin_step(self, step: int) -> None:
        """Take the number of the optimiser's step that comes, from 0."""
        self.step = step

    def divergence(self, stats: Mapping[str, float]) -> str | None:
        """What has gone wrong, by the statistics of a step over all micro-batches and processes; None if nothing."""
        return divergence(stats, self.config.bound)

    def end_step(self, stats: Mapping[str, Tensor]) -> None:
        """Close a step: averages take in its mean logits, spectral norms advance.

        stats  those of `forward`, averaged over all micro-batches and processes of the step
        """
        mean = torch.stack([stats["logits_real"], stats["logits_fake"]])
        decay = torch.where(self.known, self.config.lecam_decay, 0.0)
        self.averages.copy_(self.averages * decay + mean * (1 - decay))
        self.known.fill_(True)
        if isinstance(self.discriminator, Discriminator):
            self.discriminator.advance()

    def _draw(self, image_BCHW: Tensor, generator: torch.Generator | None) -> Tensor | None:
        return draw(len(image_BCHW), image_BCHW.device, generator) if self.config.augment else None

    def _changed(self, image_BCHW: Tensor, generator: torch.Generator | None) -> Tensor:
        return augment(image_BCHW, draw(len(image_BCHW), image_BCHW.device, generator), get_args(Augmentation))

    def _augmented(self, image_BCHW: Tensor, uniform_BD: Tensor | None) -> Tensor:
        return image_BCHW if uniform_BD is None else augment(image_BCHW, uniform_BD, self.config.augment)
