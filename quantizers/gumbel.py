"""Gumbel-softmax quantization: Categorical Reparameterization with Gumbel-Softmax (https://arxiv.org/abs/1611.01144).

A linear map gives a logit for every code, and the code is the largest: there is no distance between vectors and rows.
In training, Gumbel noise is added to the logits, so their argmax is a draw from softmax(logits), and softmax of the
noisy logits over a temperature stands in for the one-hot choice: as it is (DALL-E's discrete VAE,
https://arxiv.org/abs/2102.12092) or for the gradient alone, straight-through (VQGAN's variant,
https://arxiv.org/abs/2012.09841). The loss, beta KL(softmax(logits) | uniform), keeps codes in use.

Shape letters: B batch, N positions (of all images together in [N, ...]), K codes, D channels, C input channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantizers.base import Quantized, Quantizer
from quantizers.checks import check_not_negative, check_positive
from quantizers.kernels import nearest
from quantizers.means import mean_over

_BLOCK_BYTES = 32 * 2**20  # of logits, where no gradient has to keep them


class Gumbel(Quantizer):
    """Quantizer with one code per position, drawn from logits in training and their argmax otherwise.

    size              codes, K
    dim               channels of the vector that a code stands for
    in_dim            channels of the vectors received; None takes `dim`
    temperature       of the softmax over noisy logits. Usually lowered while training: set the attribute
    kl                weight of KL(softmax(logits) | uniform) in nats, mean over positions
    straight_through  True gives the chosen row forward, and the gradient of the softmax; False gives the mean of all
                      rows under the softmax, in training only

    A training step takes up to six tables of N x K; without gradients there is none, whatever N.
    """

    kind = "gumbel"

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        in_dim: int | None = None,
        temperature: float = 1.0,
        kl: float = 5e-4,
        straight_through: bool = True,
    ) -> None:
        super().__init__()
        in_dim = dim if in_dim is None else in_dim
        if size < 2 or dim < 1 or in_dim < 1:
            raise ValueError(
                f"size={size}, dim={dim}, in_dim={in_dim}: expected at least 2 codes, and at least 1 channel each"
            )
        check_positive(temperature=temperature)
        check_not_negative(kl=kl)
        self.size, self.dim, self.in_dim = size, dim, in_dim
        self.temperature, self.kl, self.straight_through = temperature, kl, straight_through
        self.codes = (size,)
        self.to_logits = nn.Linear(in_dim, size)
        self.codebook_KD = nn.Parameter(torch.randn(size, dim))

    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        flat_NC = z_BND.reshape(-1, self.in_dim)
        # The choice outside training is that of encode, to the last bit of a near tie.
        index_N = None if self.training else self._chosen(flat_NC)
        parts = [self._block(z_PC, index_P) for z_PC, index_P in self._blocks(flat_NC, index_N)]
        q_ND, codes_N, divergence_N = (torch.cat(column) for column in zip(*parts, strict=True))
        divergence = mean_over(divergence_N.view(*z_BND.shape[:2], 1), mask_BN)
        return Quantized(
            q_ND.view(*z_BND.shape[:2], self.dim),
            codes_N.view(*z_BND.shape[:2], 1),
            self.kl * divergence,
            {"kl": divergence.detach()},
        )

    def _block(self, z_NC: Tensor, index_N: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors [N, D], codes [N] and divergence from uniform [N]; codes are drawn where none are given."""
        logit_NK = self.to_logits(z_NC)
        log_NK = logit_NK.log_softmax(-1)
        divergence_N = math.log(self.size) + (log_NK.exp() * log_NK).sum(-1)
        if index_N is None:
            # Gumbel noise is minus the logarithm of an exponential variable.
            logit_NK = logit_NK - torch.empty_like(logit_NK).exponential_().log()
            index_N = logit_NK.argmax(-1)
        soft_NK = (logit_NK / self.temperature).softmax(-1)
        if self.training and not self.straight_through:
            return soft_NK @ self.codebook_KD, index_N, divergence_N
        row_ND = F.embedding(index_N, self.codebook_KD)
        if torch.is_grad_enabled():
            mean_ND = soft_NK @ self.codebook_KD.detach()
            row_ND = row_ND + (mean_ND - mean_ND.detach())  # exactly the row, with the gradient of the mean
        return row_ND, index_N, divergence_N

    def _blocks(self, flat_NC: Tensor, index_N: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Everything at once where a gradient keeps the tables anyway, or a graph is traced; else what fits a block."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not len(flat_NC):
            yield flat_NC, index_N
            return
        positions = max(1, _BLOCK_BYTES // (4 * self.size))
        for start in range(0, len(flat_NC), positions):
            block = slice(start, start + positions)
            yield flat_NC[block], None if index_N is None else index_N[block]

    @torch.no_grad()
    def _chosen(self, flat_NC: Tensor) -> Tensor:
        """Code [N] of the largest logit: the largest inner product once the bias is one more channel. Streamed."""
        weight_KC = torch.cat([self.to_logits.weight, self.to_logits.bias[:, None]], 1)
        return nearest(F.pad(flat_NC, (0, 1), value=1.0), weight_KC, metric="dot")

    def _encode(self, z_BND: Tensor) -> Tensor:
        return self._chosen(z_BND.reshape(-1, self.in_dim)).view(*z_BND.shape[:2], 1)

    def _decode(self, codes_BNS: Tensor) -> Tensor:
        return F.embedding(codes_BNS.squeeze(-1), self.codebook_KD)

    def _codes_of(self, q_BND: Tensor) -> Tensor:
        # The logits of a row need not be largest at its own code, so the code is read off by distance.
        return nearest(q_BND.reshape(-1, self.dim), self.codebook_KD).view(*q_BND.shape[:2], 1)
