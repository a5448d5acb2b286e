"""Signs and packed codes, C++ (bits.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.kernels.native.library import library, pointer


def sign_quantize(z_ND: Tensor, scale: float, streams: int, msb: bool, *, isa: int = -1) -> tuple[Tensor, Tensor]:
    """Values +-scale [N, D] float32 and codes [N, streams] int64 of contiguous float32 vectors [N, D].

    isa  0 plain, 1 AVX2, 2 AVX-512; -1 the best that this processor has
    """
    code = library()
    assert code is not None
    count, dim = z_ND.shape
    q_ND = torch.empty_like(z_ND)
    codes_NS = torch.empty(count, streams, dtype=torch.int64)
    code.tmm_sign_quantize(
        pointer(z_ND), pointer(q_ND), pointer(codes_NS), count * streams, dim // streams,
        scale, msb, torch.get_num_threads(), isa,
    )  # fmt: skip
    return q_ND, codes_NS
