"""Adversarial training: losses of tokenizer and discriminator, and what keeps the pair from collapsing.

Discriminator and tokenizer losses as VQGAN has them (https://arxiv.org/abs/2012.09841), LeCam regularisation
(https://arxiv.org/abs/2104.03310), the R1 penalty (https://arxiv.org/abs/1801.04406), DiffAugment (see
`tokenizers_mm.losses.augment`). Everything is a mean over logits of a head, then over heads, so no weight means another
thing at another image size; and nothing changes within an optimiser step, so accumulation equals one large batch.

Shape letters: B batch, C image channels, H and W pixels; logits are lists of [B, ...], one entry per head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from quantizers.distributed import processes, sum_over_processes
from tokenizers_mm.losses.augment import Augmentation, augment, draw
from tokenizers_mm.losses.terms import Losses
from tokenizers_mm.nets import Discriminator, DiscriminatorConfig, PatchConfig

__all__ = [
    "AdversarialConfig",
    "Adversary",
    "adaptive_weight",
    "consistency_penalty",
    "discriminator_loss",
    "generator_loss",
    "lecam_penalty",
    "r1_penalty",
    "trouble",
]

Kind = Literal["hinge", "non_saturating", "vanilla"]
Logits = Sequence[Tensor]


def generator_loss(fake: Logits, kind: Kind) -> Tensor:
    """What the tokenizer minimises: -logit, or softplus(-logit) where non-saturating."""
    return _mean(fake, (lambda x: F.softplus(-x)) if kind == "non_saturating" else torch.neg)


def discriminator_loss(real: Logits, fake: Logits, kind: Kind) -> Tensor:
    """Half of relu(1 - real) + relu(1 + fake) for hinge, else of the cross-entropies.

    "vanilla" and "non_saturating" differ for the tokenizer only; both names are the field's (VQGAN, LlamaGen).
    """
    if kind == "hinge":
        return 0.5 * (_mean(real, lambda x: F.relu(1 - x)) + _mean(fake, lambda x: F.relu(1 + x)))
    return 0.5 * (_mean(real, lambda x: F.softplus(-x)) + _mean(fake, F.softplus))


def lecam_penalty(real: Logits, fake: Logits, real_average: Tensor, fake_average: Tensor) -> Tensor:
    """LeCam: relu(real - fake_average)^2 + relu(real_average - fake)^2, the averages being of earlier steps.

    With the relu of the published code: logits are pulled together, not pushed apart once they have crossed.
    """
    high = _mean(real, lambda x: F.relu(x - fake_average).square())
    return high + _mean(fake, lambda x: F.relu(real_average - x).square())


def r1_penalty(real: Logits, image_BCHW: Tensor) -> Tensor:
    """R1: half the squared gradient norm of the logits with respect to the real images they came from.

    Where an image has N logits their sum is divided by sqrt(N): the paper's penalty for one logit, and the mean of the
    logits' penalties for N patches apart, whatever the image size.
    """
    total = torch.stack([logit.float().sum() * (len(logit) / logit.numel()) ** 0.5 for logit in real]).mean()
    (gradient_BCHW,) = torch.autograd.grad(total, image_BCHW, create_graph=True)
    return 0.5 * gradient_BCHW.float().square().flatten(1).sum(1).mean()


def consistency_penalty(logits: Logits, changed: Logits) -> Tensor:
    """Balanced consistency: squared difference of logits of images and of the same images augmented.

    https://arxiv.org/abs/2002.04724, as UniTok has it (https://arxiv.org/abs/2502.20321): both sides get a gradient.
    """
    return torch.stack([F.mse_loss(a.float(), b.float()) for a, b in zip(changed, logits, strict=True)]).mean()


def adaptive_weight(reference_grad: Tensor, grad: Tensor, maximum: float) -> Tensor:
    """The factor, between 0 and `maximum`, that makes the norm of `grad` that of `reference_grad`; no gradient.

    A gradient that has vanished gets 0: no factor would help it, and the largest one would be ruinous when it returns.
    VQGAN adds 1e-4 to the divisor instead: about the norm of a gradient at pixels, which shrinks as images grow. NaN
    stays NaN, for the training loop to find.
    """
    reference, norm = reference_grad.detach().float().norm(), grad.detach().float().norm()
    return torch.where(norm == 0, torch.zeros_like(norm), (reference / norm).clamp(max=maximum))


def trouble(stats: Mapping[str, Tensor], bound: float) -> str | None:
    """Say what is wrong with a discriminator, from its statistics; None if nothing is.

    bound  of |logit|; a healthy discriminator stays within tens
    """
    largest = float(stats["discriminator_largest"])
    if not largest <= bound:
        return (
            f"discriminator: the largest |logit| is {largest:.6g}, beyond {bound:g}; lower its learning_rate, "
            "or use lecam, r1 or a spectral discriminator"
        )
    return None


def _mean(logits: Logits, f: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([f(logit.float()).mean() for logit in logits]).mean()


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """How a discriminator is trained, and what the tokenizer hears of it.

    weight         of the tokenizer's adversarial term; times the adaptive weight if `adaptive`
    loss           "hinge"; "non_saturating"; "vanilla" (cross-entropy, but -logit for the tokenizer)
    adaptive       keep the term's gradient as long as that of the reconstruction; the factor never exceeds max_weight
    start          step from which the tokenizer feels it; the discriminator trains `warmup` steps before
    lecam          weight of the LeCam penalty; lecam_decay  of its moving averages
    r1             weight of the R1 penalty, computed every r1_every steps and then r1_every times as large
    consistency    weight of the balanced consistency penalty, for real and for fake images; two more passes
    augment        what both kinds of images undergo before they are judged
    learning_rate, betas, clip    of the discriminator's own optimiser, and its largest gradient norm
    bound          training stops where |logit| exceeds it
    """

    weight: float = 0.5
    loss: Kind = "hinge"
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
    """A discriminator with its losses: a second player as `tokenizers_mm.training.loop` wants it.

    step  number of the optimiser step, from 0: the training loop sets it. It decides when R1 is due

    After each step of the discriminator's optimiser the loop calls `end_step()`.
    """

    averages: Tensor
    known: Tensor

    def __init__(self, discriminator: nn.Module, config: AdversarialConfig) -> None:
        super().__init__()
        self.discriminator, self.config, self.step = discriminator, config, 0
        self.learning_rate, self.betas, self.clip = config.learning_rate, config.betas, config.clip
        self.register_buffer("averages", torch.zeros(2))  # of real and fake logits
        self.register_buffer("known", torch.zeros((), dtype=torch.bool))
        self._seen: list[Tensor] = []

    def active(self, step: int) -> bool:
        """Whether the tokenizer feels the discriminator at this step."""
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
        stats = _stats(real, fake)
        if self.training:
            self._seen.append(torch.stack([stats["logits_real"], stats["logits_fake"]]))
        return Losses(terms, stats)

    def end_step(self) -> None:
        """Close an optimiser step: averages take in all micro-batches of all processes, spectral norms advance."""
        if self._seen:
            mean = sum_over_processes(torch.stack(self._seen).mean(0)) / processes()
            decay = torch.where(self.known, self.config.lecam_decay, 0.0)
            self.averages.copy_(self.averages * decay + mean * (1 - decay))
            self.known.fill_(True)
            self._seen = []
        if isinstance(self.discriminator, Discriminator):
            self.discriminator.advance()

    def trouble(self, stats: Mapping[str, Tensor]) -> str | None:
        """What is wrong, by the statistics of a step over all processes; None if nothing is."""
        return trouble(stats, self.config.bound)

    def _draw(self, image_BCHW: Tensor, generator: torch.Generator | None) -> Tensor | None:
        return draw(len(image_BCHW), image_BCHW.device, generator) if self.config.augment else None

    def _changed(self, image_BCHW: Tensor, generator: torch.Generator | None) -> Tensor:
        return augment(image_BCHW, draw(len(image_BCHW), image_BCHW.device, generator), get_args(Augmentation))

    def _augmented(self, image_BCHW: Tensor, uniform_BD: Tensor | None) -> Tensor:
        return image_BCHW if uniform_BD is None else augment(image_BCHW, uniform_BD, self.config.augment)


@torch.no_grad()
def _stats(real: Logits, fake: Logits) -> dict[str, Tensor]:
    right = 0.5 * (_mean(real, lambda x: (x > 0).float()) + _mean(fake, lambda x: (x < 0).float()))
    largest = torch.stack([logit.float().abs().max() for logit in (*real, *fake)]).max()
    return {
        "logits_real": _mean(real, Tensor.float),
        "logits_fake": _mean(fake, Tensor.float),
        "discriminator_accuracy": right,
        "discriminator_largest": largest,
    }
