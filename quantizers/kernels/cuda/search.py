"""Search of a codebook, tile by tile, on the tensor cores: what the nearest-code and the residual kernels share.

A float32 is the sum of two tf32 numbers, to 2^-22: x = hi + lo. Three products, lo.hi + hi.lo + hi.hi, then give the
inner product as exactly as float32 arithmetic does (Ootomo and Yokota, https://arxiv.org/abs/2203.03341). The codebook
is split once per call, so the inner loop has nothing to do but load, multiply and compare. Splitting by hand, not by
Triton's "tf32x3", also makes the interpreter round as the tensor cores do. The score is |e|^2 / 2 - z . e.

Block letters: R rows of a program, C codebook rows, H channels of a block. P marks a padded size.
"""
# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from quantizers.kernels.cuda.tiles import Precision, Tile


class Prepared(NamedTuple):
    """Codebooks [levels, KP, DP], padded to whole tiles: split, and half the squared norms (inf in the padding)."""

    hi: Tensor
    lo: Tensor
    half: Tensor


@triton.jit
def round_tf32(x):
    """Nearest tf32 number: a float32 whose last 13 bits are zero."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def prepare_kernel(
    e_ptr,
    hi_ptr,
    lo_ptr,
    half_ptr,
    K,
    KP,
    D,
    DP,
    R: tl.constexpr,
    H: tl.constexpr,
    EXACT: tl.constexpr,
    DOT: tl.constexpr,
):
    """Split rows of codebooks [levels, K, D] into [levels, KP, DP], and take half their squared norms."""
    row_R = tl.program_id(0) * R + tl.arange(0, R)
    real_R = row_R % KP < K
    channel_H = tl.arange(0, H)
    source_RH = e_ptr + (row_R // KP * K + row_R % KP).to(tl.int64)[:, None] * D + channel_H[None, :]
    target_RH = row_R.to(tl.int64)[:, None] * DP + channel_H[None, :]
    square_RH = tl.zeros([R, H], tl.float32)
    for start in range(0, DP, H):
        e_RH = tl.load(source_RH + start, mask=real_R[:, None] & (start + channel_H[None, :] < D), other=0.0)
        square_RH += e_RH * e_RH
        if EXACT:
            hi_RH = round_tf32(e_RH)
            tl.store(hi_ptr + target_RH + start, hi_RH)
            tl.store(lo_ptr + target_RH + start, round_tf32(e_RH - hi_RH))
        else:
            tl.store(hi_ptr + target_RH + start, e_RH.to(tl.bfloat16))
    half_R = tl.sum(square_RH, 1) * (0.0 if DOT else 0.5)
    tl.store(half_ptr + row_R, tl.where(real_R, half_R, float("inf")))


def prepare(e_LKD: Tensor, tile: Tile, dot: bool, precision: Precision) -> Prepared:
    """Split and pad codebooks [L, K, D]; `dot` leaves the norms out of the score."""
    levels, size, dim = e_LKD.shape
    padded, channels = triton.cdiv(size, tile.codes) * tile.codes, triton.cdiv(dim, tile.channels) * tile.channels
    exact = precision == "tf32x3"
    hi = e_LKD.new_empty(levels, padded, channels, dtype=torch.float32 if exact else torch.bfloat16)
    lo = torch.empty_like(hi) if exact else hi
    half = e_LKD.new_empty(levels, padded)
    rows = 32
    prepare_kernel[(levels * padded // rows,)](
        e_LKD, hi, lo, half, size, padded, dim, channels, R=rows, H=tile.channels, EXACT=exact, DOT=dot, num_warps=4
    )
    return Prepared(hi, lo, half)


@triton.jit
def multiply(z_RH, hi_HC, lo_HC, score_RC, EXACT: tl.constexpr, UPCAST: tl.constexpr):
    """Add z . e to the score; the smallest terms first."""
    if EXACT:
        z_hi_RH = round_tf32(z_RH)
        z_lo_RH = round_tf32(z_RH - z_hi_RH)
        score_RC = tl.dot(z_lo_RH, hi_HC, score_RC, input_precision="tf32")
        score_RC = tl.dot(z_hi_RH, lo_HC, score_RC, input_precision="tf32")
        score_RC = tl.dot(z_hi_RH, hi_HC, score_RC, input_precision="tf32")
    elif UPCAST:  # Triton's interpreter multiplies the bit patterns of bfloat16 as if they were numbers.
        score_RC = tl.dot(z_RH.to(tl.bfloat16).to(tl.float32), hi_HC.to(tl.float32), score_RC, input_precision="ieee")
    else:
        score_RC = tl.dot(z_RH.to(tl.bfloat16), hi_HC, score_RC)
    return score_RC


@triton.jit
def search(
    z_RH,
    z_ptr_RH,
    hi_ptr,
    lo_ptr,
    half_ptr,
    first,
    last,
    D,
    DP: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    EVEN: tl.constexpr,
    EXACT: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Least score and index, [R] each, among codebook tiles first..last-1; equal scores keep the lowest index.

    z_RH      the vectors, where one block holds all channels (DP == H)
    z_ptr_RH  pointers to their first block, read where it does not
    EVEN      D is a whole number of blocks: reads of z need no mask
    """
    channel_H = tl.arange(0, H)
    column_C = tl.arange(0, C)
    best_R = tl.full([R], float("inf"), tl.float32)
    index_R = tl.zeros([R], tl.int32)
    for tile in range(first, last):
        row_C = tile * C + column_C
        half_C = tl.load(half_ptr + row_C)
        offset_HC = row_C[None, :] * DP + channel_H[:, None]
        dot_RC = tl.zeros([R, C], tl.float32)
        for start in range(0, DP, H):
            if DP == H:
                block_RH = z_RH
            elif EVEN:
                block_RH = tl.load(z_ptr_RH + start)
            else:
                block_RH = tl.load(z_ptr_RH + start, mask=start + channel_H[None, :] < D, other=0.0)
            hi_HC = tl.load(hi_ptr + offset_HC + start)
            lo_HC = tl.load(lo_ptr + offset_HC + start) if EXACT else hi_HC
            dot_RC = multiply(block_RH, hi_HC, lo_HC, dot_RC, EXACT, UPCAST)
        score_RC = half_C[None, :] - dot_RC
        least_R, column_R = tl.min(score_RC, 1, return_indices=True, return_indices_tie_break_left=True)
        better_R = least_R < best_R
        best_R = tl.where(better_R, least_R, best_R)
        index_R = tl.where(better_R, tile * C + column_R.to(tl.int32), index_R)
    return best_R, index_R
