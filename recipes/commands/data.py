"""`tmm data`: a data set that needs no hub, written as an image folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["data"]


def data(
    name: Annotated[str, typer.Argument(help="emoji, fashion-mnist, photos, shapes or words.")],
    out: Annotated[Path, typer.Option(help="Image folder to write.")],
    size: Annotated[int | None, typer.Option(help="Height in pixels; default: 128 for emoji, else 32.")] = None,
    count: Annotated[int, typer.Option(help="Number of shapes or words.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Random seed of the shapes or words.")] = 0,
    folder: Annotated[Path | None, typer.Option(help="Where its files are; default: packages'.")] = None,
) -> None:
    """Write a data set that needs no hub as an image folder with captions.jsonl, in train/ and a held-out part."""
    from recipes.programs import write_dataset

    written = write_dataset(name, out, size=size, count=count, seed=seed, source=folder)
    print(f"wrote {written} images to {out}")
