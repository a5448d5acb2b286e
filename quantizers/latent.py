"""Latent quantization: Disentanglement via Latent Quantization (https://arxiv.org/abs/2305.18378).

Every channel has its own few values, learnable numbers; a channel becomes the nearest of them:

    q_d = argmin over v in values_d of |z_d - v|,   loss = codebook |sg(z) - q|^2 + commitment |z - sg(q)|^2

The nearest of sorted values is found by comparing with the midpoints between them. Values may be learned into any
order, so they are sorted for the comparison and keep their own index in the code. The code is the mixed-radix number
of those indices, first channel least significant.

Shape letters: D channels, L values of a channel (of the one that has most).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantizers.base import Quantized, Quantizer
from quantizers.checks import check_not_negative
from quantizers.kernels import scalar_quantize
from quantizers.means import mean_square
from quantizers.straight_through import straight_through


class Latent(Quantizer):
    """Scalar quantizer with learnable values and one code per position.

    levels      number of values of each channel, at least 2
    commitment  weight of the term that pulls vectors to their values
    codebook    weight of the term that pulls values to their vectors

    Values start evenly in [-0.5, 0.5], with zero among them. Only the loss moves them: the result's gradient goes
    straight through to the input. Both terms are means over real numbers.
    """

    kind = "latent"

    def __init__(self, levels: Sequence[int], *, commitment: float = 0.1, codebook: float = 0.1) -> None:
        super().__init__()
        self.levels = tuple(int(level) for level in levels)
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"levels={self.levels}: expected at least one channel, and 2 or more levels in each")
        if math.prod(self.levels) > 2**62:
            raise ValueError(f"levels={self.levels}: {math.prod(self.levels)} codes do not fit an int64")
        check_not_negative(commitment=commitment, codebook=codebook)
        self.commitment, self.codebook = commitment, codebook
        self.in_dim = self.dim = len(self.levels)
        self.codes = (math.prod(self.levels),)
        most = max(self.levels)
        rows = [_even_values(level) + [0.0] * (most - level) for level in self.levels]
        self.value_DL = nn.Parameter(torch.tensor(rows))
        level_D = torch.tensor(self.levels)
        self.register_buffer("level_D", level_D, persistent=False)
        self.register_buffer(
            "basis_D", torch.tensor([math.prod(self.levels[:i]) for i in range(self.dim)]), persistent=False
        )
        self.register_buffer("is_value_DL", torch.arange(most) < level_D[:, None], persistent=False)
        self.register_buffer("first_D", torch.arange(self.dim) * most, persistent=False)

    level_D: Tensor
    basis_D: Tensor
    is_value_DL: Tensor
    first_D: Tensor

    @property
    def values(self) -> list[Tensor]:
        """Values of each channel, [L] each: views of the parameter."""
        return [value_L[:level] for value_L, level in zip(self.value_DL, self.levels, strict=True)]

    @torch.no_grad()
    def _digits(self, z_BND: Tensor) -> Tensor:
        """Index [B, N, D] of the nearest value; of two that are equally near, the greater; of equal ones, the first."""
        infinite_DL = torch.full_like(self.value_DL, math.inf, dtype=torch.float32)
        sorted_DL, order_DL = torch.where(self.is_value_DL, self.value_DL.float(), infinite_DL).sort(stable=True)
        below_DT, above_DT = sorted_DL[:, :-1], sorted_DL[:, 1:]
        # A midpoint must lie above the lower value even where rounding leaves no number between the two.
        middle_DT = torch.maximum((below_DT + above_DT) / 2, torch.nextafter(below_DT, infinite_DL[:, 1:]))
        zero_D, one_D = torch.zeros_like(middle_DT[:, 0]), torch.ones_like(middle_DT[:, 0])
        rank_ND, _ = scalar_quantize(z_BND.reshape(-1, self.dim), middle_DT, self.level_D, zero_D, one_D)
        return order_DL.flatten()[rank_ND.long() + self.first_D].view(z_BND.shape)

    def _values(self, digit_BND: Tensor) -> Tensor:
        return F.embedding(digit_BND + self.first_D, self.value_DL.float().view(-1, 1)).squeeze(-1)

    def _code(self, digit_BND: Tensor) -> Tensor:
        return (digit_BND * self.basis_D).sum(-1, keepdim=True)

    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        digit_BND = self._digits(z_BND)
        q_BND = self._values(digit_BND)
        loss = self.codebook * mean_square(q_BND, z_BND.detach(), mask_BN)
        loss = loss + self.commitment * mean_square(z_BND, q_BND.detach(), mask_BN)
        return Quantized(straight_through(z_BND, q_BND), self._code(digit_BND), loss)

    def _encode(self, z_BND: Tensor) -> Tensor:
        return self._code(self._digits(z_BND))

    def _decode(self, codes_BNS: Tensor) -> Tensor:
        return self._values(codes_BNS // self.basis_D % self.level_D)


def _even_values(level: int) -> list[float]:
    """Evenly spaced values from -0.5, with zero among them: up to 0.5 for odd L, up to 0.5 - 1 / L for even L."""
    return [i / (level - level % 2) - 0.5 for i in range(level)]
