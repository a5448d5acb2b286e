"""`tmm compare`: tokenizers side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recipes.commands.arguments import (
    Device,
    Limit,
    MaxUnreadable,
    PerceptualName,
    PerceptualWeights,
    PresetName,
    chosen_device,
)
from recipes.commands.checks import check_measuring
from tokenizers_mm.data import ALLOWED_SHARE

__all__ = ["compare"]


def compare(
    tokenizers: Annotated[
        list[str],
        typer.Argument(help="Run or tokenizer folders, weights files, hub names, lite0, timm:MODEL, module:attribute."),
    ],
    images: Annotated[str, typer.Option(help="Held-out photos, emoji or fashion-mnist, or an image folder.")],
    out: Annotated[Path, typer.Option(help="Folder for index.html and compare.json.")] = Path("compare"),
    name: Annotated[list[str] | None, typer.Option(help="What to call each, in order (repeatable).")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images, where the tokenizers leave a choice.")] = None,
    limit: Limit = None,
    preset: PresetName = "default",
    perceptual: PerceptualName = "none",
    perceptual_weights: PerceptualWeights = None,
    fd: Annotated[str | None, typer.Option(help="Frechet distance: inception (FID), lite0, timm:MODEL.")] = None,
    probe: Annotated[
        str, typer.Option(help="Labelled images to probe on: a set, a folder, none, or auto: IMAGES, with labels.")
    ] = "auto",
    probe_limit: Annotated[int, typer.Option(min=1, help="Use so many labelled images of each part.")] = 4000,
    pictures: Annotated[int, typer.Option(min=1, help="Show so many images.")] = 8,
    speed: Annotated[bool, typer.Option(help="Measure speed and memory, a process for each tokenizer.")] = True,
    max_unreadable: MaxUnreadable = ALLOWED_SHARE,
    device: Device = "auto",
) -> None:
    """Measure tokenizers on the same images and write one page: figures, pictures, what the bits buy."""
    from tokenizers_mm.runtime import local_path

    local_path(out, "--out")  # before anything is measured
    sets = [images, None if probe == "auto" else probe]
    check_measuring(
        tokenizers,
        sets,
        preset_name=preset,
        perceptual_name=perceptual,
        frechet=fd,
        max_unreadable=max_unreadable,
    )
    from recipes.compare import Settings, compare_tokenizers, write_comparison

    settings = Settings(
        images=images,
        size=size,
        limit=limit,
        max_unreadable=max_unreadable,
        preset=preset,
        perceptual=perceptual,
        perceptual_weights=None if perceptual_weights is None else str(perceptual_weights),
        frechet=fd,
        probe=probe,
        probe_limit=probe_limit,
        speed=speed,
        pictures=pictures,
        device=str(chosen_device(device)),
    )
    comparison = compare_tokenizers(tokenizers, settings, names=name or [], progress=print)
    print(f"open {write_comparison(comparison, out)}")
