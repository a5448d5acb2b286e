"""Generators, and tokenizers with them, that learn from a teacher through the generator's hidden state.

REPA (https://arxiv.org/abs/2410.06940): the hidden state of an early block, projected, is pulled towards features of
the clean image. REPA-E (https://arxiv.org/abs/2504.10483): that pull also trains the tokenizer; the velocity loss does
not, because the latents that are easiest to predict are worthless.

Shape letters: B batch, N positions, D channels of a latent, L patches, E channels of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from backbones import Flow
from backbones.embed import condition_of
from recipes.joint.latent_norm import LatentNorm
from tokenizers_mm.api import Batch, Condition
from tokenizers_mm.data import Draw, Examples
from tokenizers_mm.geometry import match_grid
from tokenizers_mm.losses import Losses, Perceptual, cosine_distance, projector
from tokenizers_mm.models import Autoencoder
from tokenizers_mm.semantics import Semantics
from tokenizers_mm.store import TokenDataset
from tokenizers_mm.towers import Teacher
from tokenizers_mm.training import Objective


@dataclass(frozen=True, kw_only=True)
class RepaConfig:
    """What alignment through a generator's hidden state weighs; defaults as published.

    layer             blocks before the hidden state that is aligned (published: 8 of 28; 4 of 12)
    weight            of 1 - cosine in the training of the generator
    projector_width   of the three layers between the hidden state and the teacher's width
    tokenizer_weight  of 1 - cosine in the training of the tokenizer (REPA-E)
    l1, perceptual, bottleneck  weights of the tokenizer's own terms (REPA-E); published: 1, 1, and 1e-6 of the KL's sum
                      over an image, which is .008 of its mean at 16 x 16 positions of 32 channels
    momentum          of the running statistics of latents (REPA-E)
    """

    layer: int = 2
    weight: float = 0.5
    projector_width: int = 2048
    tokenizer_weight: float = 1.5
    l1: float = 1.0
    perceptual: float = 0.0
    bottleneck: float = 0.008
    momentum: float = 0.1

    def __post_init__(self) -> None:
        """Refuse negative weights, and sizes and a momentum that mean nothing."""
        for name in ("weight", "tokenizer_weight", "l1", "perceptual", "bottleneck"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: a weight cannot be negative")
        if min(self.layer, self.projector_width) < 1 or not 0 < self.momentum <= 1:
            raise ValueError(
                f"layer={self.layer}, projector_width={self.projector_width}, momentum={self.momentum}: expected at "
                "least 1, at least 1, and in (0, 1]"
            )


@dataclass(frozen=True, eq=False)
class AlignedBatch:
    """Tokens, their condition, and a teacher's features of the same images."""

    batch: Batch
    features: Semantics

    def __post_init__(self) -> None:
        """Refuse features of another number of images."""
        _check_features(self.features, len(self.batch))

    def __len__(self) -> int:
        return len(self.batch)

    def to(self, device: torch.device | str) -> AlignedBatch:
        """Move everything to a device."""
        return AlignedBatch(self.batch.to(device), self.features.to(device))


class AlignedTokens:
    """A source of `AlignedBatch`: item i of a token store with row i of cached features."""

    def __init__(self, tokens: TokenDataset, features: Semantics) -> None:
        _check_features(features, len(tokens))
        self.tokens, self.features = tokens, features

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, draws: Sequence[Draw]) -> AlignedBatch:
        """Fetch these items."""
        return AlignedBatch(self.tokens.batch(draws), self.features[[draw.index for draw in draws]])


class RepaObjective(nn.Module, Objective):
    """REPA: maps an `AlignedBatch` to the terms velocity and repa; both train the generator, repa its projector too.

    feature_dim  channels of the teacher's vectors of positions
    """

    def __init__(self, generator: Flow, config: RepaConfig, feature_dim: int) -> None:
        super().__init__()
        self.generator, self.config, self.grid = generator, config, _aligned_grid(generator, config)
        self.projector = projector(generator.config.width, feature_dim, width=config.projector_width)

    def forward(self, batch: AlignedBatch) -> Losses:
        """Draw noise and times, predict, and compare."""
        tokens, condition = batch.batch.tokens.check(self.generator.spec), _condition(self.generator, batch.batch)
        states = self.generator(tokens.data, condition, self.generator.draw(tokens.data), layer=self.config.layer)
        wanted_BLE = match_grid(batch.features.patch_BND, batch.features.grid, self.grid)
        repa = cosine_distance(self.projector(states.hidden_BLE), wanted_BLE)
        return Losses({"velocity": states.loss, "repa": self.config.weight * repa}, {"cosine": 1 - repa.detach()})


class RepaEObjective(nn.Module, Objective):
    """REPA-E: maps `Examples` to the terms below, which train disjoint things.

        velocity, repa                     the generator and, repa, its projector; latents are cut off
        repa_tokenizer                     the tokenizer's encoder, through a generator and a projector that stand still
        l1, perceptual, and the bottleneck's    the tokenizer

    Noise and times are the same in both passes through the generator. The discriminator of the published recipe is not
    here. Call `finish` on the trained objective: it gives the tokenizer the statistics its latents were trained with.

    tokenizer  continuous, on the generator's grid; teacher  gives features for batches that bring none
    """

    def __init__(
        self,
        generator: Flow,
        tokenizer: Autoencoder,
        config: RepaConfig,
        feature_dim: int,
        *,
        teacher: Teacher | None = None,
        perceptual: Perceptual | None = None,
    ) -> None:
        super().__init__()
        self.grid = _aligned_grid(generator, config)
        if tokenizer.spec != generator.spec or tokenizer.config.latent_patch != 1 or tokenizer.config.latent_positions:
            raise ValueError(
                f"the tokenizer gives {tokenizer.spec}, the generator takes {generator.spec}: they must be one, with "
                "latent_patch 1 and statistics per channel"
            )
        if tokenizer.generative:
            raise ValueError("the tokenizer's decoder is a flow: REPA-E trains decoders that give pixels at once")
        if config.perceptual and perceptual is None:
            raise ValueError(f"perceptual={config.perceptual}: a perceptual network is needed")
        self.generator, self.tokenizer, self.config = generator, tokenizer, config
        self.teacher, self.perceptual = teacher, perceptual
        self.projector = projector(generator.config.width, feature_dim, width=config.projector_width)
        self.latents = LatentNorm(tokenizer.latent_mean_D, tokenizer.latent_std_D, momentum=config.momentum)

    def forward(self, batch: Tensor | Examples) -> Losses:
        """Encode, reconstruct, align, and predict."""
        examples = Examples.of(batch)
        quantized, vectors = self.tokenizer.quantized(examples.image_BCHW)
        terms = self._reconstruction(self.tokenizer.pixels(vectors).float(), examples.image_BCHW)
        terms["kl"] = self.config.bottleneck * quantized.loss
        features, condition = self._features(examples), _condition(self.generator, examples)
        wanted_BLE = match_grid(features.patch_BND, features.grid, self.grid)
        terms |= self._aligned(quantized.z_BND.float(), condition, wanted_BLE)
        return Losses(terms, quantized.stats)

    def finish(self) -> None:
        """Give the tokenizer the running statistics: its latents are then those the generator knows."""
        self.tokenizer.set_statistics(self.latents.mean_D, self.latents.std())

    def _aligned(self, z_BND: Tensor, condition: Condition, wanted_BLE: Tensor) -> dict[str, Tensor]:
        config, layer = self.config, self.config.layer
        draw = self.generator.draw(z_BND)
        # The tokenizer is taught with every condition in place, and by statistics that its own step does not move.
        seen = draw._replace(drop_B=None)
        still = _still(self.generator, self.latents.fixed(z_BND), condition, seen, layer=layer, stop=True)
        of_tokenizer = cosine_distance(_still(self.projector, still.hidden_BLE), wanted_BLE)
        states = self.generator(self.latents(z_BND.detach()), condition, draw, layer=layer)
        of_generator = cosine_distance(self.projector(states.hidden_BLE), wanted_BLE)
        return {
            "velocity": states.loss,
            "repa": config.weight * of_generator,
            "repa_tokenizer": config.tokenizer_weight * of_tokenizer,
        }

    def _reconstruction(self, recon_BCHW: Tensor, image_BCHW: Tensor) -> dict[str, Tensor]:
        terms = {}
        if self.config.l1:
            terms["l1"] = self.config.l1 * F.l1_loss(recon_BCHW, image_BCHW)
        if self.config.perceptual and self.perceptual is not None:
            terms["perceptual"] = self.config.perceptual * self.perceptual(recon_BCHW, image_BCHW).mean()
        return terms

    def _features(self, examples: Examples) -> Semantics:
        if examples.features is not None:
            return examples.features
        if self.teacher is None:
            raise ValueError("features: the batch brings none; cache them beside the images, or give a teacher")
        with torch.no_grad():
            return self.teacher.semantics(examples.image_BCHW)


def _still(module: nn.Module, *inputs: Any, **options: Any) -> Any:
    """The module's output with gradients for its inputs alone."""
    return functional_call(module, {name: p.detach() for name, p in module.named_parameters()}, inputs, options)


def _condition(generator: Flow, batch: Batch | Examples) -> Condition:
    return condition_of(
        batch.captions,
        batch.labels_B,
        classes=generator.config.classes,
        batch=len(batch),
        label_range=batch.label_range if isinstance(batch, Batch) else None,
    )


def _aligned_grid(generator: Flow, config: RepaConfig) -> tuple[int, int]:
    """Rows and columns of the hidden state that is aligned; `ValueError` where there is no such block or grid."""
    if config.layer > generator.config.depth:
        raise ValueError(f"layer={config.layer}: this generator has the blocks 1..{generator.config.depth}")
    match generator.hidden_grid:
        case (int(rows), int(columns)):
            return rows, columns
    raise ValueError(
        f"the generator's grid is {generator.hidden_grid}: only patches (rows, columns) align with a teacher's"
    )


def _check_features(features: Semantics, count: int) -> None:
    if len(features) != count:
        raise ValueError(f"features: {len(features)} for {count} images; they must pair one to one")
