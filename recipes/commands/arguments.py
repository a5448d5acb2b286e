"""Arguments that several commands share, and what is said about them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    import torch

__all__ = [
    "TOO_MANY_QUARANTINED",
    "Device",
    "GeneratorName",
    "ImageSize",
    "Limit",
    "MaxQuarantined",
    "MaxUnreadable",
    "PerceptualName",
    "PerceptualWeights",
    "PresetName",
    "TokenizerName",
    "chosen_device",
    "tell",
    "warn",
]

TOO_MANY_QUARANTINED = 3  # exit status

TokenizerName = Annotated[
    str,
    typer.Argument(
        help="Run or tokenizer folder, weights file, diffusers folder, hub repository, or module:attribute of your own."
    ),
]
GeneratorName = Annotated[Path, typer.Argument(help="Run folder, or the generator folder inside it.")]
ImageSize = Annotated[
    int | None, typer.Option(help="Resize the shorter side to this and crop the centre; default: native size.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first so many images.")]
PresetName = Annotated[str, typer.Option(help="Whose rules to follow: default, adm, torch-fidelity, seed, bsq-vit.")]
PerceptualName = Annotated[str, typer.Option(help="lpips-vgg, lpips-alex, lite0, timm:MODEL, or none.")]
PerceptualWeights = Annotated[Path | None, typer.Option(help="File with its network's weights.")]
Device = Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu, cuda or cuda:N.")]
MaxUnreadable = Annotated[
    float, typer.Option(help="Share of a folder's images that may be unreadable; they are named and left out.")
]
MaxQuarantined = Annotated[
    float, typer.Option(help="Share of the images that may be quarantined; more end with exit status 3.")
]


def chosen_device(name: str) -> torch.device:
    """The device of that name, told on stderr where it is not the CPU; `ValueError` where it is not there."""
    from tokenizers_mm.runtime import choose_device

    device = choose_device(name)
    if device.type != "cpu":
        print(f"on {device}", file=sys.stderr)
    return device


def warn(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as one line on stderr; may stand in for `warnings.showwarning`."""
    tell("warning:", str(message), "yellow")


def tell(label: str, message: str, colour: str) -> None:
    """Print one line on stderr, the label in bold and the message to the letter."""
    # Without emoji: else `module:x:` in a message becomes a picture.
    console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    console.print(f"[bold {colour}]{label}[/] {escape(message)}")
