"""Nearest row of a codebook without the N x K distance matrix.

argmin_k |z - e_k|^2 = argmin_k (|e_k|^2 / 2 - z . e_k): one matrix product per block of rows, reduced while the block
is still in cache. The largest inner product is the same search without the norms.

Shape letters: N vectors, K rows, D channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from quantizers.kernels import native
from quantizers.kernels.dispatch import backend, operation

Metric = Literal["euclidean", "dot"]

_BLOCK_BYTES = 8 * 2**20


def nearest(z_ND: Tensor, codebook_KD: Tensor, *, metric: Metric = "euclidean") -> Tensor:
    """Index [N] int64 of the best row for every vector, float32 exact; ties go to the lowest index.

    metric  "euclidean": least distance; "dot": largest inner product (cosine where the rows have unit norm)

    Extra memory is a block, whatever N and K. Not differentiable.
    """
    if z_ND.ndim != 2 or codebook_KD.ndim != 2 or z_ND.shape[1] != codebook_KD.shape[1]:
        raise ValueError(
            f"z_ND has shape {tuple(z_ND.shape)}, codebook_KD {tuple(codebook_KD.shape)}: expected [N, D] and [K, D]"
        )
    if not len(codebook_KD):
        raise ValueError("codebook_KD has no rows: nothing is nearest")
    if metric not in ("euclidean", "dot"):
        raise ValueError(f"metric {metric!r}: expected euclidean or dot")
    index_N: Tensor = _nearest(
        z_ND.detach().float().contiguous(), codebook_KD.detach().float().contiguous(), metric == "dot"
    )
    return index_N


def nearest_reference(z_ND: Tensor, codebook_KD: Tensor, dot: bool) -> Tensor:
    """Plain PyTorch, on any device."""
    half_norm_K = _half_norms(codebook_KD, dot)
    rows = max(1, _BLOCK_BYTES // (4 * len(codebook_KD)))
    index_N = torch.empty(len(z_ND), dtype=torch.int64, device=z_ND.device)
    score_NK = z_ND.new_empty(min(rows, len(z_ND)), len(codebook_KD))
    for start in range(0, len(z_ND), rows):
        block_ND = z_ND[start : start + rows]
        block_NK = score_NK[: len(block_ND)]
        torch.addmm(half_norm_K, block_ND, codebook_KD.T, alpha=-1, out=block_NK)
        torch.argmin(block_NK, dim=-1, out=index_N[start : start + rows])
    return index_N


def _half_norms(codebook_KD: Tensor, dot: bool) -> Tensor:
    if dot:
        return codebook_KD.new_zeros(len(codebook_KD))
    # As a product of rows: squaring them first would take as much memory again as the codebook.
    return torch.bmm(codebook_KD[:, None], codebook_KD[:, :, None]).flatten() / 2


@operation("quantizers::nearest")
def _nearest(z_ND: Tensor, codebook_KD: Tensor, dot: bool) -> Tensor:
    if not len(z_ND):
        return torch.empty(0, dtype=torch.int64, device=z_ND.device)
    match backend(z_ND.device):
        case "cuda":
            from quantizers.kernels.cuda.nearest import nearest_cuda

            return nearest_cuda(z_ND, codebook_KD, dot)
        case "native":
            return native.nearest(z_ND, codebook_KD, dot)
        case _:
            return nearest_reference(z_ND, codebook_KD, dot)


@_nearest.register_fake
def _(z_ND: Tensor, codebook_KD: Tensor, dot: bool) -> Tensor:
    return z_ND.new_empty(z_ND.shape[0], dtype=torch.int64)


def sample_nearest(z_ND: Tensor, codebook_KD: Tensor, temperature: float, *, metric: Metric = "euclidean") -> Tensor:
    """Index [N] int64 drawn with probability ~ exp(-|z - e_k|^2 / temperature), of unit vectors for "dot".

    By Gumbel noise on the scores, block by block. Not differentiable. Raises `ValueError` unless temperature > 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected a positive number; `nearest` is the limit at 0")
    index_N: Tensor = _sample(z_ND.detach().float(), codebook_KD.detach().float(), float(temperature), metric == "dot")
    return index_N


@torch.library.custom_op("quantizers::sample_nearest", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _sample(z_ND: Tensor, codebook_KD: Tensor, temperature: float, dot: bool) -> Tensor:
    half_norm_K = _half_norms(codebook_KD, dot)
    index_N = torch.empty(len(z_ND), dtype=torch.int64, device=z_ND.device)
    rows = max(1, _BLOCK_BYTES // (4 * len(codebook_KD)))
    for start in range(0, len(z_ND), rows):
        score_NK = torch.addmm(half_norm_K, z_ND[start : start + rows], codebook_KD.T, alpha=-1)
        # -|z - e|^2 = -2 score + a constant, and Gumbel noise is minus the logarithm of an exponential variable.
        score_NK.add_(torch.empty_like(score_NK).exponential_().log_(), alpha=temperature / 2)
        torch.argmin(score_NK, dim=-1, out=index_N[start : start + rows])
    return index_N


@_sample.register_fake
def _(z_ND: Tensor, codebook_KD: Tensor, temperature: float, dot: bool) -> Tensor:
    return z_ND.new_empty(z_ND.shape[0], dtype=torch.int64)
