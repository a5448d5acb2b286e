"""Adversarial losses of tokenizer and discriminator, and the penalties that keep the pair from collapsing.

Discriminator and tokenizer losses as VQGAN has them (https://arxiv.org/abs/2012.09841), LeCam regularisation
(https://arxiv.org/abs/2104.03310), the R1 penalty (https://arxiv.org/abs/1801.04406). Everything is a mean over logits
of a head, then over heads, so no weight means another thing at another image size.

Shape letters: B batch, C image channels, H and W pixels; logits are lists of [B, ...], one entry per head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "AdversarialLoss",
    "adaptive_weight",
    "consistency_penalty",
    "discriminator_loss",
    "divergence",
    "generator_loss",
    "lecam_penalty",
    "logit_statistics",
    "r1_penalty",
]

AdversarialLoss = Literal["hinge", "non_saturating", "vanilla"]
Logits = Sequence[Tensor]


def generator_loss(fake: Logits, kind: AdversarialLoss) -> Tensor:
    """What the tokenizer minimises: -logit, or softplus(-logit) where non-saturating."""
    return _mean(fake, (lambda x: F.softplus(-x)) if kind == "non_saturating" else torch.neg)


def discriminator_loss(real: Logits, fake: Logits, kind: AdversarialLoss) -> Tensor:
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


def divergence(stats: Mapping[str, float], bound: float) -> str | None:
    """Say by its statistics that a discriminator has diverged; None where it has not.

    bound  of |logit|; a healthy discriminator stays within tens
    """
    largest = stats["discriminator_largest"]
    if not largest <= bound:
        return (
            f"discriminator: the largest |logit| is {largest:.6g}, beyond {bound:g}; lower its learning_rate, "
            "or use lecam, r1 or a spectral discriminator"
        )
    return None


@torch.no_grad()
def logit_statistics(real: Logits, fake: Logits) -> dict[str, Tensor]:
    """Scalars worth logging: mean logits, accuracy of their signs (0.5 is blind), and the largest |logit|."""
    right = 0.5 * (_mean(real, lambda x: (x > 0).float()) + _mean(fake, lambda x: (x < 0).float()))
    largest = torch.stack([logit.float().abs().max() for logit in (*real, *fake)]).max()
    return {
        "logits_real": _mean(real, Tensor.float),
        "logits_fake": _mean(fake, Tensor.float),
        "discriminator_accuracy": right,
        "discriminator_largest": largest,
    }


def _mean(logits: Logits, f: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([f(logit.float()).mean() for logit in logits]).mean()
