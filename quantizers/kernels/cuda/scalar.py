"""Finite scalar quantization on the GPU by thresholds: one read of the vectors, one write of levels and codes, no tanh.

A channel's digit is the number of its thresholds that are not above the value, so that the bound of FSQ
(https://arxiv.org/abs/2309.15505), which is monotone, need not be evaluated. The code is the mixed-radix number of the
digits, first channel least significant.

Shape letters: N vectors, D channels, T thresholds. In the kernel R rows of a program, H channels with padding.
"""
# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quantizers.kernels.cuda.nearest import on_device

_VALUES = 2048  # of a program: enough loads in flight, few registers


@triton.jit
def scalar_kernel(
    z_ptr,
    threshold_ptr,
    level_ptr,
    center_ptr,
    half_ptr,
    q_ptr,
    code_ptr,
    N,
    T,
    D: tl.constexpr,
    R: tl.constexpr,
    H: tl.constexpr,
):
    """Levels [N, D] and codes [N] of R rows."""
    row_R = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    channel_H = tl.arange(0, H)
    there_H = channel_H < D
    there_RH = (row_R < N)[:, None] & there_H[None, :]
    offset_RH = row_R[:, None] * D + channel_H[None, :]
    z_RH = tl.load(z_ptr + offset_RH, mask=there_RH, other=0.0)
    # Infinity counts as the largest finite number: it must not reach the +inf that fills a row. NaN reaches nothing.
    z_RH = tl.where(z_RH == float("inf"), 3.4028234663852886e38, z_RH)
    digit_RH = tl.zeros([R, H], tl.int32)
    for t in range(0, T):
        threshold_H = tl.load(threshold_ptr + channel_H * T + t, mask=there_H, other=float("inf"))
        digit_RH = tl.where(z_RH >= threshold_H[None, :], t + 1, digit_RH)  # they ascend: the last one counts
    center_H = tl.load(center_ptr + channel_H, mask=there_H, other=0).to(tl.float32)
    half_H = tl.load(half_ptr + channel_H, mask=there_H, other=1).to(tl.float32)
    q_RH = tl.div_rn(digit_RH.to(tl.float32) - center_H[None, :], tl.broadcast_to(half_H[None, :], [R, H]))
    tl.store(q_ptr + offset_RH, q_RH, mask=there_RH)
    level_H = tl.load(level_ptr + channel_H, mask=there_H, other=1).to(tl.int64)
    basis_H = tl.cumprod(level_H, 0) // level_H
    code_R = tl.sum(digit_RH.to(tl.int64) * basis_H[None, :], 1)
    tl.store(code_ptr + row_R, code_R, mask=row_R < N)


def scalar_quantize_cuda(
    z_ND: Tensor, threshold_DT: Tensor, level_D: Tensor, center_D: Tensor, half_D: Tensor
) -> tuple[Tensor, Tensor]:
    """Levels (digit - center) / half, [N, D] float32, and their codes [N] int64.

    z_ND, threshold_DT  float32, contiguous, on the same GPU; rows of thresholds ascend and end in +inf where shorter
    level_D             number of digits of each channel; the product is at most 2^62
    center_D, half_D    offset and scale of each channel's digits
    """
    (count, dim), thresholds = z_ND.shape, threshold_DT.shape[1]
    q_ND, code_N = torch.empty_like(z_ND), z_ND.new_empty(count, dtype=torch.int64)
    if not count:
        return q_ND, code_N
    channels = triton.next_power_of_2(dim)
    rows = max(1, _VALUES // channels)
    with on_device(z_ND):
        scalar_kernel[(triton.cdiv(count, rows),)](
            z_ND, threshold_DT, level_D, center_D, half_D, q_ND, code_N, count, thresholds, D=dim, R=rows, H=channels,
            num_warps=4,
        )  # fmt: skip
    return q_ND, code_N
