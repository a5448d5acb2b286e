"""Sign quantization on the GPU: one read of the vectors, one write of signs and packed bits.

Lookup-free quantization (https://arxiv.org/abs/2310.05737): a channel becomes +scale or -scale by its sign, zero
counting as negative, and the channels of a stream are the bits of its code. The streams of a vector follow one another
in memory, so the kernel sees nothing but groups of G channels.

Shape letters: N vectors, D channels, S streams, G channels of a stream. In the kernel R groups of a program, H channels
with padding.
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
def sign_kernel(z_ptr, q_ptr, code_ptr, N, scale, G: tl.constexpr, R: tl.constexpr, H: tl.constexpr, MSB: tl.constexpr):
    """Signs [N, G] and codes [N] of R groups."""
    row_R = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    channel_H = tl.arange(0, H)
    there_RH = (row_R < N)[:, None] & (channel_H < G)[None, :]
    offset_RH = row_R[:, None] * G + channel_H[None, :]
    z_RH = tl.load(z_ptr + offset_RH, mask=there_RH, other=0.0)
    tl.store(q_ptr + offset_RH, tl.where(z_RH > 0, scale, -scale), mask=there_RH)
    place_H = tl.maximum(G - 1 - channel_H, 0) if MSB else channel_H
    place_H = place_H.to(tl.int32 if G < 32 else tl.int64)
    weight_H = tl.full([H], 1, place_H.dtype) << place_H
    code_R = tl.sum(tl.where(z_RH > 0, weight_H[None, :], 0), 1)
    tl.store(code_ptr + row_R, code_R.to(tl.int64), mask=row_R < N)


def sign_quantize_cuda(z_ND: Tensor, scale: float, streams: int, msb: bool) -> tuple[Tensor, Tensor]:
    """Values +-scale [N, D] float32, and codes [N, S] int64 of the bits z > 0.

    z_ND     float32, contiguous, on a GPU
    streams  S, a divisor of D; each holds D / S consecutive channels, at most 62
    msb      a stream's first channel is its most significant bit, else its least
    """
    count, dim = z_ND.shape
    q_ND, code_NS = torch.empty_like(z_ND), z_ND.new_empty(count, streams, dtype=torch.int64)
    if not count:
        return q_ND, code_NS
    group = dim // streams
    channels = triton.next_power_of_2(group)
    rows = max(1, _VALUES // channels)
    with on_device(z_ND):
        sign_kernel[(triton.cdiv(count * streams, rows),)](
            z_ND, q_ND, code_NS, count * streams, scale, G=group, R=rows, H=channels, MSB=msb, num_warps=4
        )
    return q_ND, code_NS
