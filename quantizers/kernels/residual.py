"""Residual encoding: every level takes the nearest row of its codebook to what the levels before it left.

Shape letters: N vectors, L levels, K rows of a codebook, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quantizers.kernels import native
from quantizers.kernels.dispatch import backend, operation
from quantizers.kernels.nearest import nearest

# What is left of a block stays in the cache from one level to the next.
_BLOCK_BYTES = 2 * 2**20


def residual_encode(z_ND: Tensor, codebooks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Codes [N, L] int64 and the sum of their rows [N, D], float32 exact; ties go to the lowest index.

    codebooks  L tensors [K, D]; K may differ from level to level

    Extra memory is a block, whatever N and K. Not differentiable.
    """
    return _checked(z_ND, codebooks, False)[:2]


def residual_errors(z_ND: Tensor, codebooks: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What `residual_encode` gives, and the squared length [N, L] of what every level leaves of each vector."""
    return _checked(z_ND, codebooks, True)


def _checked(z_ND: Tensor, codebooks: Sequence[Tensor], errors: bool) -> tuple[Tensor, Tensor, Tensor]:
    if not len(codebooks):
        raise ValueError("codebooks is empty: expected one tensor [K, D] for every level")
    for level, codebook_KD in enumerate(codebooks):
        if z_ND.ndim != 2 or codebook_KD.ndim != 2 or z_ND.shape[1] != codebook_KD.shape[1]:
            raise ValueError(
                f"z_ND has shape {tuple(z_ND.shape)}, codebooks[{level}] {tuple(codebook_KD.shape)}: "
                "expected [N, D] and [K, D]"
            )
        if not len(codebook_KD):
            raise ValueError(f"codebooks[{level}] has no rows: nothing is nearest")
    rows = [codebook_KD.detach().float().contiguous() for codebook_KD in codebooks]
    codes_NL, q_ND, error_NL = _residual_encode(z_ND.detach().float().contiguous(), rows, errors)
    return codes_NL, q_ND, error_NL


def residual_encode_reference(z_ND: Tensor, codebooks: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Level by level with `nearest`, in blocks of vectors, on any device."""
    codes_NL = torch.empty(len(z_ND), len(codebooks), dtype=torch.int64, device=z_ND.device)
    error_NL = z_ND.new_empty(codes_NL.shape)
    q_ND = torch.zeros_like(z_ND)
    rows = max(1, _BLOCK_BYTES // (4 * z_ND.shape[1]))
    for start in range(0, len(z_ND), rows):
        block = slice(start, start + rows)
        left_ND, sum_ND = z_ND[block].clone(), q_ND[block]
        for level, codebook_KD in enumerate(codebooks):
            codes_NL[block, level] = nearest(left_ND, codebook_KD)
            chosen_ND = codebook_KD[codes_NL[block, level]]
            sum_ND += chosen_ND
            left_ND -= chosen_ND
            error_NL[block, level] = left_ND.square().sum(-1)
    return codes_NL, q_ND, error_NL


def _errors(z_ND: Tensor, codebooks: Sequence[Tensor], codes_NL: Tensor) -> Tensor:
    left_ND, errors = z_ND.clone(), []
    for codebook_KD, code_N in zip(codebooks, codes_NL.unbind(-1), strict=True):
        left_ND -= codebook_KD[code_N]
        errors.append(left_ND.square().sum(-1))
    return torch.stack(errors, -1)


@operation("quantizers::residual_encode")
def _residual_encode(z_ND: Tensor, codebooks: list[Tensor], errors: bool) -> tuple[Tensor, Tensor, Tensor]:
    none_L = z_ND.new_empty(0, len(codebooks))
    match backend(z_ND.device):
        case "cuda" if len(z_ND) and len({len(codebook_KD) for codebook_KD in codebooks}) == 1:
            from quantizers.kernels.cuda.residual import residual_encode_cuda

            codes_NL, q_ND = residual_encode_cuda(z_ND, torch.stack(codebooks))
            return codes_NL, q_ND, _errors(z_ND, codebooks, codes_NL) if errors else none_L
        case "native" if len(z_ND):
            codes_NL, q_ND, error_NL = native.residual_encode(z_ND, codebooks)
        case _:
            codes_NL, q_ND, error_NL = residual_encode_reference(z_ND, codebooks)
    return codes_NL, q_ND, error_NL if errors else none_L


@_residual_encode.register_fake
def _(z_ND: Tensor, codebooks: list[Tensor], errors: bool) -> tuple[Tensor, Tensor, Tensor]:
    count, levels = z_ND.shape[0], len(codebooks)
    codes_NL = z_ND.new_empty(count, levels, dtype=torch.int64)
    return codes_NL, torch.empty_like(z_ND), z_ND.new_empty(count if errors else 0, levels)
