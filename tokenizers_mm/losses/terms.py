"""What a module that is trained returns: named loss terms, and what goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

__all__ = ["Losses"]


class Losses(NamedTuple):
    """The output of a trained module's forward pass.

    terms  named losses, whose sum is minimised
    stats  detached scalars worth logging
    pair   real images and their reconstructions, detached, [B, C, H, W] each, that a discriminator is trained on next;
           None where there is none, or it rests
    """

    terms: Mapping[str, Tensor]
    stats: Mapping[str, Tensor]
    pair: tuple[Tensor, Tensor] | None = None
