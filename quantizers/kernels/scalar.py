"""Scalar quantization by thresholds: every channel has its own few levels, and no transcendental function is needed.

    digit_d = number of thresholds t with z_d >= threshold_dt,   q_d = (digit_d - center_d) / half_d,
    code    = sum over d of digit_d * (product of the levels before d)

Whatever monotone function squashes the channels (tanh in FSQ) went into the thresholds beforehand, so codes do not
depend on how a device computes it.

Shape letters: N vectors, D channels, T thresholds (levels - 1 of the channel that has most).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.kernels import native
from quantizers.kernels.dispatch import backend, operation

_BLOCK_BYTES = 2 * 2**20
# Above this, one binary search per channel is faster than one comparison per threshold.
_MOST_PASSES = 16


def scalar_quantize(
    z_ND: Tensor, threshold_DT: Tensor, level_D: Tensor, center_D: Tensor, half_D: Tensor
) -> tuple[Tensor, Tensor]:
    """Values q [N, D] float32 and codes [N] int64 of vectors [N, D].

    threshold_DT  float32, ascending along T; a channel of L levels has L - 1, the rest of its row is +inf
    level_D       int64 number of levels; their product fits an int64
    center_D      float32 digit whose value is zero; half_D: float32 digits that make one unit of value

    The first channel is the least significant digit. Infinities count as the largest finite number, NaN as the lowest
    digit. Every backend gives the same bits. Extra memory is a block. Not differentiable.
    """
    if z_ND.ndim != 2 or not z_ND.is_floating_point():
        raise ValueError(f"z_ND is {z_ND.dtype} of shape {tuple(z_ND.shape)}: expected a float type, [N, D]")
    dim = z_ND.shape[1]
    if threshold_DT.ndim != 2 or len(threshold_DT) != dim or not threshold_DT.shape[1]:
        raise ValueError(f"threshold_DT has shape {tuple(threshold_DT.shape)}: expected [{dim}, T] with T >= 1")
    for name, value_D in (("level_D", level_D), ("center_D", center_D), ("half_D", half_D)):
        if value_D.shape != (dim,):
            raise ValueError(f"{name} has shape {tuple(value_D.shape)}: expected [{dim}]")
    result: tuple[Tensor, Tensor] = _scalar_quantize(
        z_ND.detach().float().contiguous(),
        threshold_DT.detach().float().contiguous(),
        level_D.long().contiguous(),
        center_D.detach().float().contiguous(),
        half_D.detach().float().contiguous(),
    )
    return result


def scalar_quantize_reference(
    z_ND: Tensor, threshold_DT: Tensor, level_D: Tensor, center_D: Tensor, half_D: Tensor
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch, on any device."""
    count, dim = z_ND.shape
    basis_D = level_D.cumprod(0) // level_D
    q_ND = torch.empty_like(z_ND)
    codes_N = torch.empty(count, dtype=torch.int64, device=z_ND.device)
    rows = max(1, _BLOCK_BYTES // (8 * max(dim, 1)))
    for start in range(0, count, rows):
        # As documented: no infinity reaches the padding of a row, and NaN reaches nothing.
        block_ND = z_ND[start : start + rows].nan_to_num(nan=torch.finfo(torch.float32).min)
        digit_ND = _digits(block_ND, threshold_DT)
        q_ND[start : start + rows] = (digit_ND - center_D) / half_D
        codes_N[start : start + rows] = (digit_ND * basis_D).sum(-1)
    return q_ND, codes_N


def _digits(z_ND: Tensor, threshold_DT: Tensor) -> Tensor:
    if threshold_DT.shape[1] > _MOST_PASSES:
        return torch.searchsorted(threshold_DT, z_ND.T.contiguous(), right=True).T
    digit_ND = torch.zeros_like(z_ND, dtype=torch.int64)
    for threshold_D in threshold_DT.unbind(1):
        digit_ND += z_ND >= threshold_D
    return digit_ND


@operation("quantizers::scalar_quantize")
def _scalar_quantize(
    z_ND: Tensor, threshold_DT: Tensor, level_D: Tensor, center_D: Tensor, half_D: Tensor
) -> tuple[Tensor, Tensor]:
    match backend(z_ND.device):
        case "cuda":
            from quantizers.kernels.cuda.scalar import scalar_quantize_cuda

            return scalar_quantize_cuda(z_ND, threshold_DT, level_D, center_D, half_D)
        case "native":
            return native.scalar_quantize(z_ND, threshold_DT, level_D, center_D, half_D)
        case _:
            return scalar_quantize_reference(z_ND, threshold_DT, level_D, center_D, half_D)


@_scalar_quantize.register_fake
def _(z_ND: Tensor, threshold_DT: Tensor, level_D: Tensor, center_D: Tensor, half_D: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(z_ND), z_ND.new_empty(z_ND.shape[0], dtype=torch.int64)
