"""Residual encode on the GPU: all levels in one kernel.

Level by level: index_l = nearest row of codebook l to the residual; the residual loses that row and the sum gains it.
Up to 64 channels a program keeps both on chip from the first level to the last. Beyond, the two tf32 parts of a
residual would not leave room for the codebook: the program that owns the rows updates both in place, in memory that
stays in the L2 cache.

Shape letters: N vectors, L levels, K rows, D channels. In the kernel R rows of a program, H channels of a block.
"""
# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from quantizers.kernels.cuda.nearest import nearest_cuda, on_device
from quantizers.kernels.cuda.search import prepare, search
from quantizers.kernels.cuda.tiles import Tile, card, residual_tile_of

# Of all codebooks, split. Beyond, one level is prepared and searched at a time.
_MOST_BYTES = 64 * 2**20


@triton.jit
def residual_kernel(
    rest_ptr,
    sum_ptr,
    e_ptr,
    hi_ptr,
    lo_ptr,
    half_ptr,
    code_ptr,
    N,
    K,
    KP,
    L,
    D: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
):
    """Codes [N, L] and sums [N, D] of R rows; `rest` holds the vectors and, where D is split, then the residuals."""
    row_R = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    real_R = row_R < N
    channel_H = tl.arange(0, H)
    offset_RH = tl.minimum(row_R, N - 1)[:, None] * D + channel_H[None, :]
    rest_RH = tl.zeros([R, H], tl.float32)
    sum_RH = tl.zeros([R, H], tl.float32)
    if D == H:
        rest_RH = tl.load(rest_ptr + offset_RH)
    for level in range(0, L):
        skip = level * KP
        _, index_R = search(
            rest_RH,
            rest_ptr + offset_RH,
            hi_ptr + skip * D,
            lo_ptr + skip * D,
            half_ptr + skip,
            0,
            KP // C,
            D,
            D,
            R,
            C,
            H,
            EVEN=True,
            EXACT=True,
            UPCAST=False,
        )
        tl.store(code_ptr + row_R * L + level, index_R.to(tl.int64), mask=real_R)
        e_ptr_RH = e_ptr + (level * K + index_R).to(tl.int64)[:, None] * D + channel_H[None, :]
        if D == H:
            e_RH = tl.load(e_ptr_RH)
            rest_RH -= e_RH
            sum_RH += e_RH
        else:
            # Every thread has read the residual before one overwrites it, and written it before one reads it again.
            tl.debug_barrier()
            for start in range(0, D, H):
                e_RH = tl.load(e_ptr_RH + start)
                block_RH = tl.load(rest_ptr + offset_RH + start) - e_RH
                total_RH = tl.load(sum_ptr + offset_RH + start) + e_RH
                tl.store(rest_ptr + offset_RH + start, block_RH, mask=real_R[:, None])
                tl.store(sum_ptr + offset_RH + start, total_RH, mask=real_R[:, None])
            tl.debug_barrier()
    if D == H:
        tl.store(sum_ptr + offset_RH, sum_RH, mask=real_R[:, None])


def residual_encode_cuda(z_ND: Tensor, codebooks_LKD: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N, L] int64 of every vector, and the sums [N, D] of the rows they stand for, in float32.

    z_ND, codebooks_LKD  float32, contiguous, on the same GPU
    """
    (count, dim), (levels, size, _) = z_ND.shape, codebooks_LKD.shape
    if not count or not levels:
        return z_ND.new_empty(count, levels, dtype=torch.int64), torch.zeros_like(z_ND)
    tile = residual_tile_of(dim, card(z_ND.device).hopper)
    channels = triton.cdiv(dim, tile.channels) * tile.channels
    padded = triton.cdiv(size, tile.codes) * tile.codes
    if levels * padded * channels * 8 > _MOST_BYTES:
        return residual_by_levels(z_ND, codebooks_LKD)
    if channels > dim:  # Zero channels change nothing, and whole blocks need no masks.
        more = (0, channels - dim)
        code_NL, sum_ND = _encode(F.pad(z_ND, more), F.pad(codebooks_LKD, more), tile)
        return code_NL, sum_ND[:, :dim].contiguous()
    return _encode(z_ND, codebooks_LKD, tile)


def _encode(z_ND: Tensor, e_LKD: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    (count, dim), (levels, size, _) = z_ND.shape, e_LKD.shape
    kept = dim == tile.channels
    code_NL = z_ND.new_empty(count, levels, dtype=torch.int64)
    sum_ND = torch.empty_like(z_ND) if kept else torch.zeros_like(z_ND)
    with on_device(z_ND):
        prepared = prepare(e_LKD, tile, False, "tf32x3")
        residual_kernel[(triton.cdiv(count, tile.rows),)](
            z_ND if kept else z_ND.clone(),
            sum_ND,
            e_LKD,
            *prepared,
            code_NL,
            count,
            size,
            prepared.hi.shape[1],
            levels,
            D=dim,
            R=tile.rows,
            C=tile.codes,
            H=tile.channels,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return code_NL, sum_ND


def residual_by_levels(z_ND: Tensor, codebooks_LKD: Tensor) -> tuple[Tensor, Tensor]:
    """The same, one nearest-code search per level: for codebooks too large to be split at once."""
    rest_ND, sum_ND = z_ND.clone(), torch.zeros_like(z_ND)
    code_NL = z_ND.new_empty(len(z_ND), len(codebooks_LKD), dtype=torch.int64)
    for level, codebook_KD in enumerate(codebooks_LKD):
        code_NL[:, level] = nearest_cuda(rest_ND, codebook_KD, False)
        row_ND = codebook_KD[code_NL[:, level]]
        rest_ND -= row_ND
        sum_ND += row_ND
    return code_NL, sum_ND
