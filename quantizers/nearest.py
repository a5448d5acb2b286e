"""Nearest row of a codebook without the N x K distance matrix.

argmin_k |z - e_k|^2 = argmin_k (|e_k|^2 / 2 - z . e_k): one matrix product per block of rows, reduced while the block
is still in cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_BYTES = 8 * 2**20


@torch.no_grad()
def nearest(z_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """Index [N] int64 of the Euclidean-nearest row for every vector; ties go to the lowest index. O(block) memory."""
    half_norm_K = codebook_KD.square().sum(-1) / 2
    rows = max(1, _BLOCK_BYTES // (4 * len(codebook_KD)))
    index_N = torch.empty(len(z_ND), dtype=torch.int64, device=z_ND.device)
    for start in range(0, len(z_ND), rows):
        block_ND = z_ND[start : start + rows]
        score_NK = torch.addmm(half_norm_K, block_ND, codebook_KD.T, alpha=-1)
        torch.argmin(score_NK, dim=-1, out=index_N[start : start + rows])
    return index_N
