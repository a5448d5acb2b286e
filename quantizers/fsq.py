"""Finite scalar quantization: VQ-VAE made simple (https://arxiv.org/abs/2309.15505).

Each channel is squashed into (-L/2, L/2) by a tanh and rounded to one of its L levels; the code is the mixed-radix
number whose digits are the levels, first channel least significant. There is no table to learn and none to collapse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from quantizers.base import Quantized, Quantizer

# Widens the tanh a little, so that the outermost levels stay reachable with a finite input. Beyond 1000 levels "a
# little" is more than half a cell: there would be codes outside the vocabulary.
_MARGIN = 1e-3
_MOST_LEVELS = 1000


class FSQ(Quantizer):
    """Finite scalar quantizer with one code per position.

    levels  number of levels of each channel, every one in 2..1000; (8, 5, 5, 5) gives 1000 codes

    Vectors are scaled to [-1, 1]. Even L are shifted by half a cell, as in the paper, so zero is a level for every L.
    """

    kind = "fsq"

    def __init__(self, levels: Sequence[int] = (8, 5, 5, 5)) -> None:
        super().__init__()
        self.levels = tuple(int(level) for level in levels)
        if not self.levels or not 2 <= min(self.levels) <= max(self.levels) <= _MOST_LEVELS:
            raise ValueError(
                f"levels={self.levels}: expected at least one channel, and 2..{_MOST_LEVELS} levels in each"
            )
        if math.prod(self.levels) > 2**62:
            raise ValueError(f"levels={self.levels}: {math.prod(self.levels)} codes do not fit an int64")
        self.in_dim = self.dim = len(self.levels)
        self.codes = (math.prod(self.levels),)
        level_D = torch.tensor(self.levels)
        basis_D = torch.tensor([math.prod(self.levels[:i]) for i in range(self.dim)])
        half_D = (level_D - 1) * (1 + _MARGIN) / 2
        offset_D = torch.where(level_D % 2 == 0, 0.5, 0.0)
        self.register_buffer("level_D", level_D, persistent=False)
        self.register_buffer("basis_D", basis_D, persistent=False)
        self.register_buffer("half_D", half_D, persistent=False)
        self.register_buffer("offset_D", offset_D, persistent=False)
        self.register_buffer("shift_D", torch.atanh(offset_D / half_D), persistent=False)

    level_D: Tensor
    basis_D: Tensor
    half_D: Tensor
    offset_D: Tensor
    shift_D: Tensor

    def _bounded(self, z_BND: Tensor) -> Tensor:
        return torch.tanh(z_BND + self.shift_D) * self.half_D - self.offset_D

    def _code(self, level_BND: Tensor) -> Tensor:
        digit_BND = level_BND.long() + self.level_D // 2
        return (digit_BND * self.basis_D).sum(-1, keepdim=True)

    def _forward(self, z_BND: Tensor) -> Quantized:
        bounded_BND = self._bounded(z_BND)
        level_BND = bounded_BND.round()
        straight_BND = bounded_BND + (level_BND - bounded_BND).detach()
        codes_BNS = self._code(level_BND.detach())
        return Quantized(straight_BND / (self.level_D // 2), codes_BNS, z_BND.new_zeros(()))

    def _encode(self, z_BND: Tensor) -> Tensor:
        return self._code(self._bounded(z_BND).round())

    def _decode(self, codes_BNS: Tensor) -> Tensor:
        digit_BND = codes_BNS // self.basis_D % self.level_D
        return (digit_BND - self.level_D // 2) / (self.level_D // 2)

    def _codes_of(self, q_BND: Tensor) -> Tensor:
        return self._code((q_BND * (self.level_D // 2)).round())
