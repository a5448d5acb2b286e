"""Vector quantization: Neural Discrete Representation Learning (https://arxiv.org/abs/1711.00937), EMA codebook.

A vector becomes the index of its nearest codebook row. The codebook follows the vectors by exponential moving averages
of their sums and counts; the encoder follows the codebook by the commitment term. Rows that few vectors choose are
moved onto vectors of the current batch (Jukebox, https://arxiv.org/abs/2005.00341). Counts start at zero, so the first
training batch also initialises the whole codebook from data.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from quantizers.base import Quantized, Quantizer
from quantizers.nearest import nearest


class VQ(Quantizer):
    """Euclidean vector quantizer with one code per position.

    size        rows of the codebook, K
    dim         channels of a row
    decay       of the moving averages
    commitment  weight beta of |z - sg(q)|^2 in the loss
    revive      a row is dead when its average count falls below this share of the mean count; 0 never revives
    """

    kind = "vq"

    def __init__(
        self, size: int, dim: int, *, decay: float = 0.99, commitment: float = 0.25, revive: float = 0.1
    ) -> None:
        super().__init__()
        if size < 2 or dim < 1:
            raise ValueError(f"size={size}, dim={dim}: expected a codebook of at least 2 rows of at least 1 channel")
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: expected a number in [0, 1)")
        if commitment < 0 or revive < 0:
            raise ValueError(f"commitment={commitment}, revive={revive}: neither may be negative")
        self.size, self.decay, self.commitment, self.revive = size, decay, commitment, revive
        self.in_dim = self.dim = dim
        self.codes = (size,)
        self.register_buffer("codebook_KD", torch.randn(size, dim))
        self.register_buffer("sum_KD", torch.zeros(size, dim))
        self.register_buffer("count_K", torch.zeros(size))

    codebook_KD: Tensor
    sum_KD: Tensor
    count_K: Tensor

    def _forward(self, z_BND: Tensor) -> Quantized:
        flat_ND = z_BND.detach().reshape(-1, self.dim)
        if self.training and len(flat_ND):
            self._revive(flat_ND)
        index_N = nearest(flat_ND, self.codebook_KD)
        q_BND = F.embedding(index_N, self.codebook_KD).view_as(z_BND)
        loss = self.commitment * F.mse_loss(z_BND, q_BND) if z_BND.numel() else z_BND.sum()
        if self.training and len(flat_ND):
            self._follow(flat_ND, index_N)
        codes_BNS = index_N.view(*z_BND.shape[:2], 1)
        used = (self.count_K > 0.1 * self.count_K.mean()).float().mean()
        return Quantized(z_BND + (q_BND - z_BND).detach(), codes_BNS, loss, {"codebook_in_use": used})

    def _encode(self, z_BND: Tensor) -> Tensor:
        return nearest(z_BND.reshape(-1, self.dim), self.codebook_KD).view(*z_BND.shape[:2], 1)

    def _decode(self, codes_BNS: Tensor) -> Tensor:
        return F.embedding(codes_BNS.squeeze(-1), self.codebook_KD)

    def _codes_of(self, q_BND: Tensor) -> Tensor:
        return self._encode(q_BND)

    @torch.no_grad()
    def _revive(self, flat_ND: Tensor) -> None:
        """Move dead rows onto vectors of this batch; they start with the mean count, so they get time to win some."""
        mean_count = torch.tensor(len(flat_ND) / self.size, device=flat_ND.device)
        _sum_over_processes(mean_count)
        order_N = torch.randperm(len(flat_ND), device=flat_ND.device)
        candidate_KD = flat_ND[order_N.repeat(-(-self.size // len(flat_ND)))[: self.size]]
        # A little noise keeps rows apart where the batch repeats itself: equal rows would make a code ambiguous.
        candidate_KD = candidate_KD + 1e-3 * flat_ND.std(correction=0) * torch.randn_like(candidate_KD)
        _copy_from_first_process(candidate_KD)
        dead_K = self.count_K < self.revive * mean_count if self.revive else self.count_K < 0
        self.codebook_KD.copy_(torch.where(dead_K[:, None], candidate_KD, self.codebook_KD))
        self.count_K.copy_(torch.where(dead_K, mean_count, self.count_K))
        self.sum_KD.copy_(torch.where(dead_K[:, None], candidate_KD * mean_count, self.sum_KD))

    @torch.no_grad()
    def _follow(self, flat_ND: Tensor, index_N: Tensor) -> None:
        """Move the averages, then every row that was ever chosen, to the mean of its vectors."""
        count_K = torch.zeros_like(self.count_K).index_add_(0, index_N, torch.ones_like(flat_ND[:, 0]))
        sum_KD = torch.zeros_like(self.sum_KD).index_add_(0, index_N, flat_ND)
        _sum_over_processes(count_K)
        _sum_over_processes(sum_KD)
        self.count_K.lerp_(count_K, 1 - self.decay)
        self.sum_KD.lerp_(sum_KD, 1 - self.decay)
        mean_KD = self.sum_KD / self.count_K.clamp(min=1e-5)[:, None]
        self.codebook_KD.copy_(torch.where(self.count_K[:, None] > 1e-5, mean_KD, self.codebook_KD))


def _sum_over_processes(tensor: Tensor) -> None:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)


def _copy_from_first_process(tensor: Tensor) -> None:
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(tensor, src=0)
