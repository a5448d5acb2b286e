"""What a reader of a module of vector-quantize-pytorch gives, whatever the module's class.

Shape letters: B batch, N positions, S streams, D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

Run = tuple[Tensor, Tensor, Tensor]


class Part(ABC):
    """Reader of one module. The module's attributes are those of its class, so it is `Any` here.

    inside  readers of the modules that `modules_inside` names, in the same order
    """

    pointwise = True
    in_dim: int
    dim: int
    codes: tuple[int, ...]

    def __init__(self, module: Any, *inside: Part) -> None:
        self.module, self.inside = module, inside

    @staticmethod
    def modules_inside(module: Any) -> list[nn.Module]:
        """Modules whose own readers this one needs."""
        return []

    def length(self, positions: int) -> int:
        """How many positions of codes come from so many of vectors."""
        return positions

    def places(self, positions: int) -> int:
        """How many positions of vectors come from so many of codes."""
        return positions

    def run(self, z_BND: Tensor, mask_BN: Tensor | None) -> Run:
        """Quantize. Modules that are not pointwise get a mask; for the others the caller leaves positions out."""
        vector_BND, index, *rest = self.module(z_BND)
        return vector_BND, self.streams(index, z_BND), loss_of(rest, z_BND)

    def streams(self, index: Tensor, z_BND: Tensor) -> Tensor:
        """Indices [B, N] or [B, N, S...] as codes [B, N, S]; levels that quantizer dropout left out (-1) are 0."""
        return index.reshape(*z_BND.shape[:2], len(self.codes)).long().clamp(min=0)

    @abstractmethod
    def vectors(self, codes_BNS: Tensor) -> Tensor:
        """Vectors [B, N, D] that `run` gives in evaluation for these codes."""


def loss_of(rest: list[Any], z_BND: Tensor) -> Tensor:
    """Sum of the losses a module gives, of its levels for instance; zero where it gives none."""
    return rest[0].float().sum() if rest and isinstance(rest[0], Tensor) else z_BND.new_zeros(())
