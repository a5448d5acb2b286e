"""IBQ: Scalable Image Tokenization with Index Backpropagation Quantization (https://arxiv.org/abs/2412.02692).

A vector becomes the index of the codebook row with the largest inner product. The gradient passes the index: the
one-hot choice h stands straight-through for the softmax p over all rows, q = (h + p - sg(p)) E, so every row learns in
every step, not the chosen ones alone. The loss pulls vector and row together from three sides, |q - z|^2 through the
softmax, |z - sg(e)|^2 and |e - sg(z)|^2, and the entropy term wants the sharpened softmax of each sample certain and
their mean uniform. Weights are those of SEED-Voken's IndexPropagationQuantize. Streamed: never N x K in memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantizers.base import Quantized, Quantizer
from quantizers.checks import check_codebook, check_not_negative, check_positive
from quantizers.kernels import nearest, soft_rows
from quantizers.means import mean_square


class IBQ(Quantizer):
    """Inner-product quantizer with one code per position whose whole codebook learns by gradients.

    size         rows of the codebook, K
    dim          channels of a row
    commitment   weight of |z - sg(e)|^2, relative to |q - z|^2
    codebook     weight of |e - sg(z)|^2, relative to |q - z|^2
    quant        weight of the three together in the loss
    entropy      weight of mean entropy per sample minus entropy of the mean distribution, in training; 0 saves its cost
    temperature  of the softmax in the entropy term
    """

    kind = "ibq"

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        commitment: float = 1.0,
        codebook: float = 0.25,
        quant: float = 1.0,
        entropy: float = 0.05,
        temperature: float = 0.01,
    ) -> None:
        super().__init__()
        check_codebook(size, dim)
        check_not_negative(commitment=commitment, codebook=codebook, quant=quant, entropy=entropy)
        check_positive(temperature=temperature)
        self.size, self.commitment, self.codebook, self.quant = size, commitment, codebook, quant
        self.entropy, self.temperature = entropy, temperature
        self.in_dim = self.dim = dim
        self.codes = (size,)
        self.codebook_KD = nn.Parameter(torch.randn(size, dim))

    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        flat_ND = z_BND.reshape(-1, self.dim)
        index_N = nearest(flat_ND, self.codebook_KD, metric="dot")
        rows = soft_rows(
            flat_ND,
            self.codebook_KD,
            index_N,
            temperature=self.temperature if self.training and self.entropy else 0.0,
            mask_N=None if mask_BN is None else mask_BN.reshape(-1),
        )
        q_BND, hard_BND = rows.soft_ND.view_as(z_BND), rows.hard_ND.view_as(z_BND)
        quant = (
            mean_square(q_BND, z_BND, mask_BN)
            + self.commitment * mean_square(z_BND, hard_BND.detach(), mask_BN)
            + self.codebook * mean_square(hard_BND, z_BND.detach(), mask_BN)
        )
        loss = self.quant * quant + self.entropy * (rows.entropy - rows.mean_entropy)
        stats = {"entropy": rows.entropy.detach(), "mean_entropy": rows.mean_entropy.detach()} if self.training else {}
        return Quantized(q_BND, index_N.view(*z_BND.shape[:2], 1), loss, stats)

    def _encode(self, z_BND: Tensor) -> Tensor:
        return nearest(z_BND.reshape(-1, self.dim), self.codebook_KD, metric="dot").view(*z_BND.shape[:2], 1)

    def _decode(self, codes_BNS: Tensor) -> Tensor:
        return F.embedding(codes_BNS.squeeze(-1), self.codebook_KD)

    def _codes_of(self, q_BND: Tensor) -> Tensor:
        # A row's largest inner product may be with a longer row, so its code is read off by distance.
        return nearest(q_BND.reshape(-1, self.dim), self.codebook_KD).view(*q_BND.shape[:2], 1)
