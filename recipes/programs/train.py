"""Train what a recipe describes. A run folder holds the result (tokenizer/ or generator/), history and checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

import backbones
from backbones import Autoregressive, Flow
from recipes.inputs import open_tokenizer
from recipes.programs.sample import TOKENIZER_FILE
from recipes.schema import FusedRecipe, GeneratorRecipe, Recipe, TokenizerRecipe, require_size
from tokenizers_mm.api import Batch, Tokenizer
from tokenizers_mm.data import Draw, Examples, Source, Unreadable, batch_of, draws_for, to_uint8, unreadable_of
from tokenizers_mm.losses import Losses
from tokenizers_mm.models import Autoencoder, Fused, SemanticHead, build_autoencoder
from tokenizers_mm.runtime import local_path, write_tensors, write_text
from tokenizers_mm.runtime.writing import writing
from tokenizers_mm.saving import check_saved, save
from tokenizers_mm.store import TokenDataset, WithFeatures
from tokenizers_mm.towers import build_tower, cached_semantics
from tokenizers_mm.training import Objective, Picture, RunFolder, pca_initialise, train
from tokenizers_mm.training.objective import build_objective
from tokenizers_mm.traits import takes_one_size

ADVERSARY_FILE = "adversary.safetensors"
_CALIBRATION_IMAGES, _CALIBRATION_BATCH, _PICTURE_IMAGES = 2048, 64, 8


def train_recipe(recipe: Recipe, folder: str | Path, *, resume: bool = False) -> Path:
    """Train and save; returns the folder of the finished tokenizer or generator.

    recipe  what `load_recipe` gives
    folder  run folder: result, history, pictures, checkpoints
    resume  go on from the last checkpoint in it

    Raises `ValueError` for a folder that holds a run already (unless it is resumed), and for data, tokenizers or
    networks that are not there or do not fit.
    """
    folder = local_path(folder, "folder")  # before data and teachers are read
    if isinstance(recipe, GeneratorRecipe):
        train_generator(recipe, folder, resume=resume)
    elif isinstance(recipe, FusedRecipe):
        train_fused(recipe, folder, resume=resume)
    else:
        train_tokenizer(recipe, folder, resume=resume)
    if torch.distributed.is_available() and torch.distributed.is_initialized():  # all runs of the recipe are over
        torch.distributed.destroy_process_group()
    return folder / ("generator" if isinstance(recipe, GeneratorRecipe) else "tokenizer")


def train_tokenizer(
    recipe: TokenizerRecipe, folder: Path, *, resume: bool = False, source: Source | None = None
) -> Autoencoder:
    """Train a tokenizer on images, measure its latent statistics, save it under folder/tokenizer.

    A discriminator is saved beside it, as folder/adversary.safetensors, for whoever goes on from here.

    source  what `with_features` made of the recipe's data, where several runs share it
    """
    plain = recipe.data.source() if source is None else source
    unreadable = unreadable_of(plain, warn=_first_process())
    source = with_features(recipe, plain, unreadable) if source is None else source
    set_seed(recipe.train.seed)  # after the teacher, whose making draws numbers: with and without it starts are equal
    example = _examples(source, unreadable, seed=1, start=0, count=_CALIBRATION_BATCH)
    tokenizer = _started(recipe, source, example, unreadable)
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
        picture=_reconstructions(tokenizer, source, unreadable) if recipe.objective.draws else None,
        unreadable=unreadable,
        resume=resume,
    )
    tokenizer.cpu().eval()
    if "encoder" not in recipe.freeze:  # frozen, the tokens stay what they were
        tokenizer.calibrate(_calibration(source, unreadable))
    if _first_process():
        RunFolder(folder).list_unreadable(unreadable.errors)
        save(tokenizer, folder / "tokenizer")
        if adversary is not None:
            write_tensors(folder / ADVERSARY_FILE, adversary.cpu().state_dict())
    return tokenizer


def train_fused(recipe: FusedRecipe, folder: Path, *, resume: bool = False) -> Fused:
    """Train the halves that are recipes, in folder/semantic and folder/perceptual; join and save them."""
    halves = (("semantic", recipe.semantic), ("perceptual", recipe.perceptual))
    opened = {name: _half(half) for name, half in halves if isinstance(half, str)}  # before anything is trained
    semantic, perceptual = (
        opened[name] if isinstance(half, str) else train_tokenizer(half, folder / name, resume=resume)
        for name, half in halves
    )
    fused = Fused(semantic, perceptual, how=recipe.how)
    trained = [half for half in (recipe.perceptual, recipe.semantic) if isinstance(half, TokenizerRecipe)]
    if trained and not fused.spec.discrete:
        source = trained[0].data.source()
        fused.calibrate(_calibration(source, unreadable_of(source, warn=False)))  # training named them
    if _first_process():
        save(fused, folder / "tokenizer")
    return fused


def _half(source: str) -> Tokenizer:
    """A half that is there already; `CheckpointError` where it could not be saved with the other."""
    return check_saved(open_tokenizer(source))


def with_features(recipe: TokenizerRecipe, source: Source, unreadable: Unreadable | None = None) -> Source:
    """The source with its teacher's features, where the recipe says they are computed once.

    unreadable  images that cannot be read are added to it
    """
    part = recipe.objective.alignment or recipe.objective.distillation
    if not recipe.cache_features or part is None:
        return source
    tower = build_tower(part.teacher)
    draws = [Draw(index, 0) for index in range(len(source))]
    parts = range(0, len(draws), _CALIBRATION_BATCH)
    unreadable = unreadable_of(source) if unreadable is None else unreadable
    batches = (batch_of(source, draws[i : i + _CALIBRATION_BATCH], unreadable) for i in parts)
    images = (Examples.of(batch).image_BCHW for batch in batches)
    return WithFeatures(source, cached_semantics(tower, images))


def _started(recipe: TokenizerRecipe, source: Source, example: Examples, unreadable: Unreadable) -> Autoencoder:
    """The tokenizer that training begins with."""
    if recipe.start is not None:
        loaded = open_tokenizer(recipe.start)
        if not isinstance(loaded, Autoencoder):
            raise ValueError(f"start={recipe.start}: a {type(loaded).__name__} has nothing to train; start its parts")
        if takes_one_size(loaded):
            require_size(recipe.data, loaded.spec.image_size, f"image size of {recipe.start}")
        if recipe.semantic is not None:
            loaded.semantic = SemanticHead(recipe.semantic, loaded.bottleneck.dim)
            loaded.config = replace(loaded.config, semantic=recipe.semantic)
        return loaded.train()
    assert recipe.model is not None
    tokenizer = build_autoencoder(recipe.model)
    if recipe.model.linear:
        pca_initialise(tokenizer, example.image_BCHW)
    if recipe.model.noise:  # relative to the latents' deviation, which a frozen encoder already has
        tokenizer.calibrate(_calibration(source, unreadable))
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
    kind = str(recipe.model.get("kind"))
    generator = backbones.build(kind, options, tokens.spec, tokens.codebook_VD, tokens.quantizer)
    train(_GeneratorObjective(generator), tokens, recipe.train, folder, recipe=asdict(recipe), resume=resume)
    generator.cpu().eval()
    if _first_process():
        with writing(folder / "generator"):
            backbones.save(generator, folder / "generator")
            write_text(folder / "generator" / TOKENIZER_FILE, tokens.fingerprint + "\n")
    return generator


class _GeneratorObjective(nn.Module, Objective):
    """A generator's loss as the forward pass that the training loop calls."""

    def __init__(self, generator: Autoregressive | Flow) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, batch: Batch) -> Losses:
        return Losses(self.generator.loss(batch), {})


def _first_process() -> bool:
    """Of those `accelerate launch` started, also where nothing is trained and they have not met."""
    return os.environ.get("RANK", "0") == "0"


def _reconstructions(tokenizer: Autoencoder, source: Source, unreadable: Unreadable) -> Picture:
    """A picture of two rows: some images of the source, and below each what the tokenizer makes of it."""
    image_BCHW = _examples(source, unreadable, seed=0, start=0, count=_PICTURE_IMAGES).image_BCHW

    def picture() -> NDArray[np.uint8]:
        device = next(tokenizer.parameters()).device
        recon_BCHW = tokenizer.decode(tokenizer.encode(image_BCHW.to(device))).cpu()
        rows: Sequence[NDArray[np.uint8]] = [
            np.concatenate(list(to_uint8(rows_BCHW).permute(0, 2, 3, 1).numpy()), axis=1)
            for rows_BCHW in (image_BCHW, recon_BCHW)
        ]
        return np.concatenate(rows)

    return picture


def _calibration(source: Source, unreadable: Unreadable) -> Iterator[Tensor]:
    """Images that the latent statistics are measured on: the same ones every time, fetched only where needed."""
    for start in range(0, _CALIBRATION_IMAGES, _CALIBRATION_BATCH):
        yield _examples(source, unreadable, seed=1, start=start, count=_CALIBRATION_BATCH).image_BCHW


def _examples(source: Source, unreadable: Unreadable, *, seed: int, start: int, count: int) -> Examples:
    return Examples.of(batch_of(source, draws_for(len(source), seed, start, count), unreadable))
