"""Nearest row of a codebook on the GPU: distance and running argmin in one kernel, without the N x K distances.

argmin_k |z - e_k|^2 = argmin_k (|e_k|^2 / 2 - z . e_k). Each program keeps its vectors and goes through the codebook.
Where few vectors would leave the device idle, several programs share the codebook; each then writes its best score and
index as one integer, whose order is that of the pair, and the least of them wins.

Shape letters: N vectors, K rows, D channels, S shares of the codebook.
"""
# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from quantizers.kernels.cuda.search import Prepared, prepare, search
from quantizers.kernels.cuda.tiles import Precision, Tile, card, splits_of, tile_of

# Of the split codebook: bounds the memory whatever K, and stays in the L2 cache while all programs read it.
_PART_BYTES = 16 * 2**20


@triton.jit
def nearest_kernel(
    z_ptr,
    hi_ptr,
    lo_ptr,
    half_ptr,
    out_ptr,
    N,
    D,
    base,
    tiles,
    share,
    DP: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    EVEN: tl.constexpr,
    EXACT: tl.constexpr,
    SHARED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Index of the best of `share` tiles for R rows; SHARED packs its score in front of it."""
    row_R = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    channel_H = tl.arange(0, H)
    # Rows beyond the last repeat it: they are computed and not stored, and the reads need no mask.
    z_ptr_RH = z_ptr + tl.minimum(row_R, N - 1)[:, None] * D + channel_H[None, :]
    z_RH = tl.zeros([R, H], tl.float32)
    if DP == H:
        z_RH = tl.load(z_ptr_RH) if EVEN else tl.load(z_ptr_RH, mask=channel_H[None, :] < D, other=0.0)
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, tiles)
    best_R, index_R = search(z_RH, z_ptr_RH, hi_ptr, lo_ptr, half_ptr, first, last, D, DP, R, C, H, EVEN, EXACT, UPCAST)
    out_R = index_R.to(tl.int64) + base
    if SHARED:
        bits_R = tl.where(best_R == 0.0, 0.0, best_R).to(tl.int32, bitcast=True)  # -0 equals 0
        order_R = tl.where(bits_R < 0, bits_R ^ 0x7FFFFFFF, bits_R)
        out_R = (order_R.to(tl.int64) << 32) | out_R
    tl.store(out_ptr + tl.program_id(1).to(tl.int64) * N + row_R, out_R, mask=row_R < N)


def nearest_cuda(z_ND: Tensor, codebook_KD: Tensor, dot: bool, *, precision: Precision = "tf32x3") -> Tensor:
    """Index [N] int64 of the best row for every vector; equal scores go to the lowest index.

    z_ND, codebook_KD  float32, contiguous, on the same GPU; K below 2^31
    dot                largest inner product instead of least distance
    precision          "tf32x3": as exact as float32; "bf16": faster, vectors and rows rounded to bfloat16

    Extra memory: at most 16 MiB of split codebook (or one tile of it), 8 bytes per vector and share, and the vectors in
    bfloat16 where that is the precision. A vector that is not finite gets some index in range.
    """
    if precision not in ("tf32x3", "bf16"):
        raise ValueError(f"precision {precision!r}: expected tf32x3 or bf16")
    (count, dim), size = z_ND.shape, len(codebook_KD)
    if not count:
        return z_ND.new_empty(0, dtype=torch.int64)
    device = card(z_ND.device)
    tile = tile_of(dim, device.hopper, precision)
    channels = triton.cdiv(dim, tile.channels) * tile.channels
    part = max(1, _PART_BYTES // (channels * tile.codes * (8 if precision == "tf32x3" else 2))) * tile.codes
    tiles, starts = triton.cdiv(min(part, size), tile.codes), range(0, size, part)
    splits = splits_of(triton.cdiv(count, tile.rows), tiles, device.multiprocessors * tile.resident)
    share = triton.cdiv(tiles, splits)
    splits = triton.cdiv(tiles, share)
    if precision == "bf16":  # once here, not in every tile
        z_ND = F.pad(z_ND, (0, channels - dim)).bfloat16()
    out_SN = z_ND.new_empty(len(starts) * splits, count, dtype=torch.int64)
    with on_device(z_ND):
        for start, part_SN in zip(starts, out_SN.split(splits), strict=True):
            prepared = prepare(codebook_KD[None, start : start + part], tile, dot, precision)
            _search_part(z_ND, prepared, part_SN, tile, start, share, len(out_SN) > 1)
    return out_SN.amin(0) & 0xFFFFFFFF if len(out_SN) > 1 else out_SN[0]


def _search_part(z_ND: Tensor, part: Prepared, out_SN: Tensor, tile: Tile, base: int, share: int, shared: bool) -> None:
    """Search the rows of the codebook from `base` on, as many programs for a block of vectors as there are outputs."""
    (count, dim), (_, rows, channels) = z_ND.shape, part.hi.shape
    nearest_kernel[(triton.cdiv(count, tile.rows), len(out_SN))](
        z_ND,
        *part,
        out_SN,
        count,
        dim,
        base,
        rows // tile.codes,
        share,
        DP=channels,
        R=tile.rows,
        C=tile.codes,
        H=tile.channels,
        EVEN=dim == channels,
        EXACT=part.hi.dtype == torch.float32,
        SHARED=shared,
        UPCAST=not z_ND.is_cuda,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Launch on the tensor's GPU, whichever is current."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
