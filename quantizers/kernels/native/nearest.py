"""Nearest codebook row, C++ (nearest.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.kernels.native.library import library, pointer


def nearest(z_ND: Tensor, codebook_KD: Tensor, dot: bool, *, isa: int = -1) -> Tensor:
    """Index [N] int64 of contiguous float32 vectors [N, D] in rows [K, D].

    isa  0 plain, 1 AVX2, 2 AVX-512; -1 the best that this processor has
    """
    code = library()
    assert code is not None
    (count, dim), size = z_ND.shape, len(codebook_KD)
    index_N = torch.empty(count, dtype=torch.int64)
    code.tmm_nearest(
        pointer(z_ND), pointer(codebook_KD), pointer(index_N), count, size, dim,
        dot, torch.get_num_threads(), isa,
    )  # fmt: skip
    return index_N
