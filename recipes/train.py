"""Train what a recipe describes. A run folder holds the result (tokenizer/ or generator/), history and checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from accelerate.utils import set_seed
from numpy.typing import NDArray
from torch import Tensor, nn

import backbones
from backbones import Autoregressive, Flow
from recipes.recipe import GeneratorRecipe, Recipe, TokenizerRecipe
from recipes.sample import TOKENIZER_FILE
from tokenizers_mm.api import Batch
from tokenizers_mm.autoencoder import Autoencoder, build_autoencoder
from tokenizers_mm.checkpoints import save
from tokenizers_mm.data.images import to_uint8
from tokenizers_mm.data.sources import Source, draws_for
from tokenizers_mm.data.store import TokenDataset
from tokenizers_mm.linear_start import start_linear
from tokenizers_mm.losses.perceptual import perceptual
from tokenizers_mm.objective import ReconstructionObjective
from tokenizers_mm.train import Losses, Picture, train

_CALIBRATION_IMAGES, _CALIBRATION_BATCH, _PICTURE_IMAGES = 2048, 64, 8


def run(recipe: Recipe, folder: Path, *, resume: bool = False) -> Path:
    """Train and save; returns the folder of the finished tokenizer or generator."""
    if isinstance(recipe, TokenizerRecipe):
        train_tokenizer(recipe, folder, resume=resume)
        return folder / "tokenizer"
    train_generator(recipe, folder, resume=resume)
    return folder / "generator"


def train_tokenizer(recipe: TokenizerRecipe, folder: Path, *, resume: bool = False) -> Autoencoder:
    """Train a tokenizer on images, measure its latent statistics, save it under folder/tokenizer."""
    set_seed(recipe.train.seed)
    source = recipe.data.source()
    tokenizer = build_autoencoder(recipe.model)
    if recipe.model.linear:
        start_linear(tokenizer, source.batch(draws_for(len(source), 1, 0, _CALIBRATION_BATCH)))
    network = perceptual(recipe.objective.perceptual_network) if recipe.objective.perceptual else None
    objective = ReconstructionObjective(tokenizer, recipe.objective, network)
    train(
        objective,
        source,
        recipe.train,
        folder,
        recipe=asdict(recipe),
        picture=_reconstructions(tokenizer, source),
        resume=resume,
    )
    tokenizer.cpu().eval()
    tokenizer.calibrate(_calibration(source))
    if _first_process():
        save(tokenizer, folder / "tokenizer")
    return tokenizer


def train_generator(recipe: GeneratorRecipe, folder: Path, *, resume: bool = False) -> Autoregressive | Flow:
    """Train a generator on a token store, save it under folder/generator."""
    set_seed(recipe.train.seed)
    tokens = TokenDataset(Path(recipe.tokens))
    options = {name: value for name, value in recipe.model.items() if name != "kind"}
    generator = backbones.build(str(recipe.model.get("kind")), options, tokens.spec, tokens.codebook_VD)
    train(_GeneratorObjective(generator), tokens, recipe.train, folder, recipe=asdict(recipe), resume=resume)
    generator.cpu().eval()
    if _first_process():
        backbones.save(generator, folder / "generator")
        (folder / "generator" / TOKENIZER_FILE).write_text(tokens.fingerprint + "\n")
    return generator


class _GeneratorObjective(nn.Module):
    """A generator's loss as the forward pass that the training loop calls."""

    def __init__(self, generator: Autoregressive | Flow) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, batch: Batch) -> Losses:
        return Losses(self.generator.loss(batch), {})


def _first_process() -> bool:
    """Of those `accelerate launch` started; the process group itself is gone after training."""
    return os.environ.get("RANK", "0") == "0"


def _reconstructions(tokenizer: Autoencoder, source: Source) -> Picture:
    """A picture of two rows: some images of the source, and below each what the tokenizer makes of it."""
    image_BCHW: Tensor = source.batch(draws_for(len(source), 0, 0, _PICTURE_IMAGES))

    def picture() -> NDArray[np.uint8]:
        device = next(tokenizer.parameters()).device
        recon_BCHW = tokenizer.decode(tokenizer.encode(image_BCHW.to(device))).cpu()
        rows: Sequence[NDArray[np.uint8]] = [
            np.concatenate(list(to_uint8(rows_BCHW).permute(0, 2, 3, 1).numpy()), axis=1)
            for rows_BCHW in (image_BCHW, recon_BCHW)
        ]
        return np.concatenate(rows)

    return picture


def _calibration(source: Source) -> Iterator[Tensor]:
    """Images that the latent statistics are measured on: the same ones every time, fetched only where needed."""
    for start in range(0, _CALIBRATION_IMAGES, _CALIBRATION_BATCH):
        yield source.batch(draws_for(len(source), 1, start, _CALIBRATION_BATCH))
