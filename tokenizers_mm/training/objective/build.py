"""From weights and names to an objective with its networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokenizers_mm.data import Examples
from tokenizers_mm.losses import Adversary, Alignment, Perceptual
from tokenizers_mm.losses.perceptual import perceptual
from tokenizers_mm.models import Autoencoder
from tokenizers_mm.nets import build_discriminator
from tokenizers_mm.towers import Teacher, build_tower
from tokenizers_mm.training.objective.config import ObjectiveConfig
from tokenizers_mm.training.objective.freeze import Part, freeze
from tokenizers_mm.training.objective.objective import TokenizerObjective


def build_objective(
    autoencoder: Autoencoder,
    config: ObjectiveConfig,
    example: Tensor | Examples,
    *,
    frozen: Sequence[Part] = (),
) -> TokenizerObjective:
    """Load the networks that the weights ask for; an adversary is `objective.adversary`, for the training loop.

    example  a batch of the data; with cached features in it, no teacher is loaded
    frozen   parts of the tokenizer that are not trained

    Raises `ValueError` naming the network whose weights cannot be had.
    """
    example = Examples.of(example)
    both = config.alignment is not None and config.distillation is not None
    if both and example.features is not None and config.alignment.teacher != config.distillation.teacher:  # type: ignore[union-attr]
        raise ValueError("features: cached from one teacher, but alignment and distillation name two; cache none")
    if config.adversarial is not None and "decoder" in frozen:
        raise ValueError("adversarial: teaches the decoder, which is frozen; drop one of the two")
    teachers: dict[str, nn.Module] = {}
    if example.features is None:
        teachers = {
            name: Teacher(build_tower(part.teacher))
            for name in ("alignment", "distillation")
            if (part := getattr(config, name)) is not None
        }
    alignment = None
    if config.alignment is not None:
        with torch.no_grad():
            features = example.features or teachers["alignment"](example.image_BCHW[:1])
        dims = features.patch_BND.shape[-1], features.pooled_BD.shape[-1]
        alignment = Alignment(config.alignment, autoencoder.bottleneck.dim, *dims)
    adversary = None
    if config.adversarial is not None:
        adversary = Adversary(build_discriminator(config.adversarial.discriminator), config.adversarial)
    return TokenizerObjective(
        autoencoder,
        config,
        perceptual=_perceptual(config),
        adversary=adversary,
        alignment=alignment,
        teachers=teachers,
        # A decoder that nothing is drawn with gets no gradient, and several processes would wait for one.
        frozen=freeze(autoencoder, frozen if config.draws else [*frozen, "decoder"]),
    )


def _perceptual(config: ObjectiveConfig) -> Perceptual | None:
    return perceptual(config.perceptual_network, weights=config.perceptual_weights) if config.perceptual else None
