"""`tmm demo`: pixels to tokens to pictures, and a page about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recipes.commands.arguments import tell

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    quick: Annotated[bool, typer.Option(help="A few steps of everything: checks the path, learns nothing.")] = False,
    precision: Annotated[
        str | None, typer.Option(help="Of generators: auto, no (float32) or bf16; default: the recipes'.")
    ] = None,
) -> None:
    """Pixels to tokens to pictures: train, encode, learn, sample, and write one page about it."""
    from recipes.demo import run_demo
    from tokenizers_mm.runtime import local_path

    folder = local_path(out, "--out")
    try:
        print(f"open {run_demo(folder, quick=quick, precision=precision)}")
    except KeyboardInterrupt:
        tell(
            "stopped:",
            f"the demo starts anew when it is called again; what it had printed is in {folder / 'logs'}",
            "yellow",
        )
        raise typer.Exit(130) from None
