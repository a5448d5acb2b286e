"""Statistics of latents that are published in a file of their own."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from tokenizers_mm.config import parse
from tokenizers_mm.models import Autoencoder, AutoencoderConfig
from tokenizers_mm.models.assemble import assemble
from tokenizers_mm.weights import CheckpointError, files

_EXPECTED = "mean and std (VA-VAE), mean and var (RAE), or latents_bias and latents_scale (REPA-E)"


def read_statistics(path: Path, model: Autoencoder) -> Autoencoder:
    """The tokenizer with the statistics of a file: per channel, or per position where the file has a grid of them.

    Keys: `mean` and `std`; `mean` and `var`, with 1e-5 added to the variance as RAE does; `latents_bias` and
    `latents_scale`. Shapes [D], [1, D, 1, 1] or [D, h, w]. Raises `CheckpointError` for anything else.
    """
    tree = {key: value.float() for key, value in files.read(path).items() if isinstance(value, Tensor)}
    if {"latents_bias", "latents_scale"} <= tree.keys():
        mean, std = tree["latents_bias"], 1 / tree["latents_scale"]
    elif {"mean", "std"} <= tree.keys():
        mean, std = tree["mean"], tree["std"]
    elif {"mean", "var"} <= tree.keys():
        mean, std = tree["mean"], (tree["var"] + 1e-5).sqrt()
    else:
        raise CheckpointError(f"{path}: holds {', '.join(tree)}; expected {_EXPECTED}")
    if model.spec.discrete:
        raise CheckpointError(f"{path}: statistics of latents, but this tokenizer gives codes; leave stats= out")
    dim = model.spec.dim
    if mean.shape != std.shape or mean.numel() % dim:
        raise CheckpointError(
            f"{path}: shapes {tuple(mean.shape)} and {tuple(std.shape)}; expected {dim} channels, or a grid of them"
        )
    positions = mean.numel() // dim
    if positions > 1:
        model = _per_position(model, positions, path)
        mean, std = (part.reshape(dim, positions).T for part in (mean, std))
    try:
        model.set_statistics(mean.reshape(model.latent_mean_D.shape), std.reshape(model.latent_std_D.shape))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return model


def _per_position(model: Autoencoder, positions: int, path: Path) -> Autoencoder:
    """The same weights with room for statistics per position, at the image size that they belong to."""
    side = round(positions**0.5)
    if side * side != positions:
        raise CheckpointError(f"{path}: {positions} positions are no square; expected one per position of an image")
    size = side * model.downsampling
    options = model.options() | {"latent_positions": True, "image_size": (size, size)}
    parse(AutoencoderConfig, options, str(path))
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("latent_")}
    wider = assemble(options, state, path)
    wider.provenance = model.provenance
    return wider
