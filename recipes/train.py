"""Train what a recipe describes. A run folder holds the result (tokenizer/ or generator/), history and checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from accelerate.utils import set_seed
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import backbones
from backbones import Autoregressive, Flow
from recipes.recipe import FusedRecipe, GeneratorRecipe, Recipe, TokenizerRecipe
from recipes.sample import TOKENIZER_FILE
from tokenizers_mm.api import Batch
from tokenizers_mm.autoencoder import Autoencoder, build_autoencoder
from tokenizers_mm.checkpoints import load, save
from tokenizers_mm.data.annotated import WithFeatures
from tokenizers_mm.data.images import to_uint8
from tokenizers_mm.data.sources import Draw, Examples, Source, draws_for
from tokenizers_mm.data.store import TokenDataset
from tokenizers_mm.fused import Fused
from tokenizers_mm.linear_start import start_linear
from tokenizers_mm.objective import build_objective
from tokenizers_mm.paths import local_path
from tokenizers_mm.semantic_head import SemanticHead
from tokenizers_mm.towers import build_tower, cached_semantics
from tokenizers_mm.train import Losses, Picture, train

ADVERSARY_FILE = "adversary.safetensors"
_CALIBRATION_IMAGES, _CALIBRATION_BATCH, _PICTURE_IMAGES = 2048, 64, 8


def run(recipe: Recipe, folder: Path, *, resume: bool = False) -> Path:
    """Train and save; returns the folder of the finished tokenizer or generator."""
    local_path(folder, "folder")  # before data and teachers are read
    if isinstance(recipe, GeneratorRecipe):
        train_generator(recipe, folder, resume=resume)
        return folder / "generator"
    if isinstance(recipe, FusedRecipe):
        train_fused(recipe, folder, resume=resume)
    else:
        train_tokenizer(recipe, folder, resume=resume)
    return folder / "tokenizer"


def train_tokenizer(
    recipe: TokenizerRecipe, folder: Path, *, resume: bool = False, source: Source | None = None
) -> Autoencoder:
    """Train a tokenizer on images, measure its latent statistics, save it under folder/tokenizer.

    A discriminator is saved beside it, as folder/adversary.safetensors, for whoever goes on from here.

    source  what `with_features` made of the recipe's data, where several runs share it
    """
    source = with_features(recipe, recipe.data.source()) if source is None else source
    set_seed(recipe.train.seed)  # after the teacher, whose making draws numbers: with and without it starts are equal
    example = Examples.of(source.batch(draws_for(len(source), 1, 0, _CALIBRATION_BATCH)))
    tokenizer = _started(recipe, source, example)
    objective = build_objective(tokenizer, recipe.objective, example, frozen=recipe.freeze)
    adversary = objective.adversary
    if adversary is not None and recipe.start is not None:
        _resume_adversary(adversary, Path(recipe.start) / ADVERSARY_FILE)
    train(
        objective,
        source,
        recipe.train,
        folder,
        recipe=asdict(recipe),
        picture=_reconstructions(tokenizer, source) if recipe.objective.draws else None,
        adversary=adversary,
        resume=resume,
    )
    tokenizer.cpu().eval()
    if "encoder" not in recipe.freeze:  # frozen, the tokens stay what they were
        tokenizer.calibrate(_calibration(source))
    if _first_process():
        save(tokenizer, folder / "tokenizer")
        if adversary is not None:
            state = {name: value.cpu().contiguous() for name, value in adversary.state_dict().items()}
            save_file(state, folder / ADVERSARY_FILE)
    return tokenizer


def train_fused(recipe: FusedRecipe, folder: Path, *, resume: bool = False) -> Fused:
    """Train the halves that are recipes, in folder/semantic and folder/perceptual; join and save them."""
    semantic, perceptual = (
        load(half) if isinstance(half, str) else train_tokenizer(half, folder / name, resume=resume)
        for name, half in (("semantic", recipe.semantic), ("perceptual", recipe.perceptual))
    )
    fused = Fused(semantic, perceptual, how=recipe.how)
    trained = [half for half in (recipe.perceptual, recipe.semantic) if isinstance(half, TokenizerRecipe)]
    if trained and not fused.spec.discrete:
        fused.calibrate(_calibration(trained[0].data.source()))
    if _first_process():
        save(fused, folder / "tokenizer")
    return fused


def with_features(recipe: TokenizerRecipe, source: Source) -> Source:
    """The source with its teacher's features, where the recipe says they are computed once."""
    part = recipe.objective.alignment or recipe.objective.distillation
    if not recipe.cache_features or part is None:
        return source
    tower = build_tower(part.teacher)
    draws = [Draw(index, 0) for index in range(len(source))]
    parts = range(0, len(draws), _CALIBRATION_BATCH)
    images = (Examples.of(source.batch(draws[i : i + _CALIBRATION_BATCH])).image_BCHW for i in parts)
    return WithFeatures(source, cached_semantics(tower, images))


def _started(recipe: TokenizerRecipe, source: Source, example: Examples) -> Autoencoder:
    """The tokenizer that training begins with."""
    if recipe.start is not None:
        folder = Path(recipe.start)
        inner = folder / "tokenizer"
        loaded = load(inner if (inner / "config.json").exists() else recipe.start)
        if not isinstance(loaded, Autoencoder):
            raise ValueError(f"start={recipe.start}: a {type(loaded).__name__} has nothing to train; start its parts")
        if recipe.semantic is not None:
            loaded.semantic = SemanticHead(recipe.semantic, loaded.bottleneck.dim)
            loaded.config = replace(loaded.config, semantic=recipe.semantic)
        return loaded.train()
    assert recipe.model is not None
    tokenizer = build_autoencoder(recipe.model)
    if recipe.model.linear:
        start_linear(tokenizer, example.image_BCHW)
    if recipe.model.noise:  # relative to the latents' deviation, which a frozen encoder already has
        tokenizer.calibrate(_calibration(source))
    return tokenizer


def _resume_adversary(adversary: nn.Module, path: Path) -> None:
    """Go on with the discriminator of an earlier run; `ValueError` where it is another one."""
    if not path.exists():
        return
    try:
        adversary.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(
            f"{path}: another discriminator than this recipe's; remove the file, or take its options"
        ) from error


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
    image_BCHW = Examples.of(source.batch(draws_for(len(source), 0, 0, _PICTURE_IMAGES))).image_BCHW

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
        yield Examples.of(source.batch(draws_for(len(source), 1, start, _CALIBRATION_BATCH))).image_BCHW
