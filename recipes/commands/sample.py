"""`tmm sample`: images for captions, drawn by a generator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recipes.commands.arguments import Device, GeneratorName, TokenizerName, chosen_device
from recipes.commands.checks import check_pair

__all__ = ["sample"]


def sample(
    generator: GeneratorName,
    tokenizer: TokenizerName,
    captions: Annotated[list[str], typer.Argument(help="One image is drawn per caption (or per class number).")],
    out: Annotated[Path, typer.Option(help="PNG to write: the images side by side.")],
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 is none.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Device = "auto",
) -> None:
    """Draw images for captions."""
    from tokenizers_mm.runtime import local_path

    local_path(out, "--out")  # before anything is drawn
    check_pair(generator, tokenizer)
    from recipes.programs import sample_images, save_strip

    place = chosen_device(device)
    images = sample_images(generator, tokenizer, captions, guidance=guidance, seed=seed, device=place)
    save_strip(images, out)
    print(f"wrote {out}")
