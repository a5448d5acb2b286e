"""What a module that is trained returns: named loss terms, and scalars worth logging."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

__all__ = ["Losses"]


class Losses(NamedTuple):
    """What an objective's forward returns: terms whose sum is minimised, and detached scalars worth logging."""

    terms: Mapping[str, Tensor]
    stats: Mapping[str, Tensor]
