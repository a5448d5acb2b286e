"""Residual encoding, C++ (residual.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from quantizers.kernels.native.library import library, pointer


def residual_encode(z_ND: Tensor, codebooks: Sequence[Tensor], *, isa: int = -1) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, L] int64, sums [N, D] and squared lengths [N, L] of what every level left; all inputs contiguous.

    isa  0 plain, 1 AVX2, 2 AVX-512; -1 the best that this processor has
    """
    code = library()
    assert code is not None
    (count, dim), levels = z_ND.shape, len(codebooks)
    q_ND = z_ND.clone()
    codes_NL = torch.empty(count, levels, dtype=torch.int64)
    error_NL = torch.empty(count, levels)
    places = (ctypes.c_void_p * levels)(*map(pointer, codebooks))
    sizes = (ctypes.c_int64 * levels)(*map(len, codebooks))
    code.tmm_residual_encode(
        pointer(q_ND), places, sizes, pointer(codes_NL), pointer(error_NL), count, levels, dim,
        torch.get_num_threads(), isa,
    )  # fmt: skip
    return codes_NL, q_ND, error_NL
