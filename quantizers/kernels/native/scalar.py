"""Scalar quantization by thresholds, C++ (scalar.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.kernels.native.library import library, pointer


def scalar_quantize(
    z_ND: Tensor, threshold_DT: Tensor, level_D: Tensor, center_D: Tensor, half_D: Tensor, *, isa: int = -1
) -> tuple[Tensor, Tensor]:
    """Values [N, D] float32 and codes [N] int64 of contiguous float32 vectors [N, D].

    isa  0 plain, 1 AVX2, 2 AVX-512; -1 the best that this processor has
    """
    code = library()
    assert code is not None
    count, dim = z_ND.shape
    q_ND = torch.empty_like(z_ND)
    codes_N = torch.empty(count, dtype=torch.int64)
    code.tmm_scalar_quantize(
        pointer(z_ND), pointer(threshold_DT), pointer(level_D), pointer(center_D), pointer(half_D),
        pointer(q_ND), pointer(codes_N), count, dim, threshold_DT.shape[1], torch.get_num_threads(), isa,
    )  # fmt: skip
    return q_ND, codes_N
