"""Arguments that several commands share, and what is said about them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

__all__ = ["Device", "MaxUnreadable", "TokenizerName", "chosen_device"]

TokenizerName = Annotated[
    str,
    typer.Argument(
        help="Run or tokenizer folder, weights file, diffusers folder, hub repository, or module:attribute of your own."
    ),
]
Device = Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu, cuda or cuda:N.")]
MaxUnreadable = Annotated[
    float, typer.Option(help="Share of a folder's images that may be unreadable; they are named and left out.")
]


def chosen_device(name: str) -> torch.device:
    """The device of that name, told on stderr where it is not the CPU; `ValueError` where it is not there."""
    from tokenizers_mm.device import choose_device

    device = choose_device(name)
    if device.type != "cpu":
        print(f"on {device}", file=sys.stderr)
    return device
