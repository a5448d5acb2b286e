"""Softmax over every row of a codebook, streamed: straight-through rows (IBQ, https://arxiv.org/abs/2412.02692).

With p_n = softmax(E z_n) and h_n the one-hot of the chosen row, soft_n = (h_n + p_n - sg(p_n)) E. Its value is the row
itself, so nothing of size N x K is needed forward; backward, a gradient g_n of soft_n has the score gradients
p_nk (a_nk - sum_j p_nj a_nj) with a_nk = g_n . e_k, which a block of vectors recomputes. The entropies of the sharper
q_n = softmax(E z_n / T), per sample and of its mean, have score gradients of the same form. They share the blocks and
the one K x D gradient.

torch's scaled_dot_product_attention(z, E, sg(E)) streams on CPU too, and is as exact, but it spends K x D on a gradient
of sg(E) and knows no entropies: at N=256, K=2^18, D=256 its forward and backward peak at 513 MiB and these at 354, of
which the gradient is 256, in about the same time.

Shape letters: N vectors, K rows, D channels, P vectors of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantizers.distributed import processes, sum_over_processes

_BLOCK_BYTES = 32 * 2**20  # of scores; a pass holds at most three such blocks
# Probabilities below this count as this: far below any rounding, but their products stay normal numbers, where
# subnormal ones would slow matrix products several times.
_LEAST = 1e-20


class SoftRows(NamedTuple):
    """Output of `soft_rows`.

    soft_ND       the chosen rows; gradients reach z through the softmax, every row through it, the chosen ones directly
    hard_ND       the chosen rows; gradients reach these only
    entropy       of softmax(E z / temperature), mean over the vectors, in nats; zero without a temperature
    mean_entropy  of the mean of those distributions, over the vectors of all processes, in nats
    """

    soft_ND: Tensor
    hard_ND: Tensor
    entropy: Tensor
    mean_entropy: Tensor


def soft_rows(
    z_ND: Tensor, codebook_KD: Tensor, index_N: Tensor, *, temperature: float = 0.0, mask_N: Tensor | None = None
) -> SoftRows:
    """Rows that `index_N` chose, straight through the softmax of all inner products, and the entropies of that choice.

    temperature  of the entropies; 0 leaves them out
    mask_N       bool, True for the vectors that the entropies are of; without any such vector both are zero

    Gradients averaged over processes, as DistributedDataParallel does, are those of the joined batch.
    Extra memory is a few blocks, besides the gradient of the codebook. Float32 or float64.
    """
    if z_ND.ndim != 2 or codebook_KD.ndim != 2 or z_ND.shape[1] != codebook_KD.shape[1]:
        raise ValueError(
            f"z_ND has shape {tuple(z_ND.shape)}, codebook_KD {tuple(codebook_KD.shape)}: expected [N, D] and [K, D]"
        )
    if index_N.shape != z_ND.shape[:1] or (mask_N is not None and mask_N.shape != z_ND.shape[:1]):
        mask = None if mask_N is None else tuple(mask_N.shape)
        raise ValueError(f"index_N has shape {tuple(index_N.shape)}, mask_N {mask}: expected [{len(z_ND)}]")
    if z_ND.dtype != codebook_KD.dtype or z_ND.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"z_ND is {z_ND.dtype}, codebook_KD {codebook_KD.dtype}: expected both float32 or float64")
    if temperature < 0:
        raise ValueError(f"temperature={temperature}: expected a positive number, or 0 for no entropies")
    weight_N = torch.ones_like(z_ND[:, 0]) if mask_N is None else mask_N.to(z_ND.dtype)
    soft_ND, hard_ND, entropy, mass_K = _soft_rows(
        z_ND.contiguous(), codebook_KD.contiguous(), index_N, weight_N.detach(), temperature
    )
    if not temperature:
        return SoftRows(soft_ND, hard_ND, entropy, entropy)
    # Divided by the average count of a process, sums average over processes to the mean of the joined batch.
    count = (sum_over_processes(weight_N.detach().sum()) / processes()).clamp(min=1e-6)
    share_K = mass_K / count
    others_K = sum_over_processes(share_K.detach().clone()) / processes() - share_K.detach()
    mean_K = share_K + others_K
    # The clamp keeps the slope of x log x finite at zero.
    mean_entropy = -(mean_K * mean_K.clamp(min=torch.finfo(mean_K.dtype).tiny).log()).sum()
    return SoftRows(soft_ND, hard_ND, entropy / count, mean_entropy)


def _blocks(count: int, size: int) -> Iterator[slice]:
    """Split the vectors so that a block's scores are small: one vector at the least, which is less than a codebook."""
    vectors = max(1, _BLOCK_BYTES // (4 * size))
    for start in range(0, count, vectors):
        yield slice(start, min(start + vectors, count))


def _buffer(z_ND: Tensor, size: int, copies: int) -> Tensor:
    return z_ND.new_empty(copies, min(len(z_ND), max(1, _BLOCK_BYTES // (4 * size))), size)


def _dot(a_PK: Tensor, b_PK: Tensor) -> Tensor:
    """Inner products [P, 1] of rows, without their elementwise product."""
    return torch.bmm(a_PK[:, None], b_PK[:, :, None])[:, 0]


def _sharpen(score_PK: Tensor, log_PK: Tensor, temperature: float) -> None:
    """Scores become the probabilities of softmax(score / temperature), beside their logarithms."""
    torch.log_softmax(score_PK.div_(temperature), -1, out=log_PK).clamp_(min=math.log(_LEAST))
    torch.exp(log_PK, out=score_PK)


@torch.library.custom_op("quantizers::soft_rows", mutates_args=())
def _soft_rows(
    z_ND: Tensor, codebook_KD: Tensor, index_N: Tensor, weight_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows twice, the weighted sum [] of entropies and the weighted sum [K] of distributions."""
    row_ND = codebook_KD[index_N]
    entropy, mass_K = z_ND.new_zeros(()), z_ND.new_zeros(len(codebook_KD))
    if temperature:
        score, log = _buffer(z_ND, len(codebook_KD), 2)
        for block in _blocks(len(z_ND), len(codebook_KD)):
            weight_P = weight_N[block]
            score_PK, log_PK = score[: len(weight_P)], log[: len(weight_P)]
            torch.mm(z_ND[block], codebook_KD.T, out=score_PK)
            _sharpen(score_PK, log_PK, temperature)
            entropy -= weight_P @ _dot(score_PK, log_PK)[:, 0]
            mass_K.addmv_(score_PK.T, weight_P)
    return row_ND, row_ND.clone(), entropy, mass_K


@_soft_rows.register_fake
def _(
    z_ND: Tensor, codebook_KD: Tensor, index_N: Tensor, weight_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (torch.empty_like(z_ND), torch.empty_like(z_ND), z_ND.new_empty(()), z_ND.new_empty(codebook_KD.shape[0]))


@torch.library.custom_op("quantizers::soft_rows_backward", mutates_args=())
def _soft_rows_backward(
    z_ND: Tensor,
    codebook_KD: Tensor,
    index_N: Tensor,
    weight_N: Tensor,
    temperature: float,
    soft_grad_ND: Tensor,
    hard_grad_ND: Tensor,
    entropy_grad: Tensor,
    mass_grad_K: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of z and of the codebook."""
    z_grad_ND, grad_KD = torch.empty_like(z_ND), torch.zeros_like(codebook_KD)
    grad_KD.index_add_(0, index_N, soft_grad_ND + hard_grad_ND)
    if not len(z_ND):
        return z_grad_ND, grad_KD
    three = _buffer(z_ND, len(codebook_KD), 3)
    for block in _blocks(len(z_ND), len(codebook_KD)):
        z_PD, weight_P = z_ND[block], weight_N[block]
        # One product gives the scores and a = g . e, so that the codebook is read once for both.
        pair = three.flatten(0, 1)[: 2 * len(z_PD)]
        score_PK, a_PK = torch.mm(torch.cat([z_PD, soft_grad_ND[block]]), codebook_KD.T, out=pair).chunk(2)
        spare_PK = three[2, : len(z_PD)]
        torch.softmax(score_PK, -1, out=spare_PK).clamp_(min=_LEAST)
        a_PK.sub_(_dot(spare_PK, a_PK)).mul_(spare_PK)
        if temperature:
            _sharpen(score_PK, spare_PK, temperature)
            spare_PK.mul_(-entropy_grad).add_(mass_grad_K)
            spare_PK.sub_(_dot(score_PK, spare_PK)).mul_(score_PK)
            a_PK.addcmul_(spare_PK, weight_P[:, None], value=1 / temperature)
        torch.mm(a_PK, codebook_KD, out=z_grad_ND[block])
        grad_KD.addmm_(a_PK.T, z_PD)
    return z_grad_ND, grad_KD


@_soft_rows_backward.register_fake
def _(z_ND: Tensor, codebook_KD: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(z_ND), torch.empty_like(codebook_KD)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.temperature = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    soft, hard, entropy, mass = (grad.contiguous() for grad in grads)
    z_grad_ND, grad_KD = _soft_rows_backward(*ctx.saved_tensors, ctx.temperature, soft, hard, entropy, mass)
    return z_grad_ND, grad_KD, None, None, None


_soft_rows.register_autograd(_backward, setup_context=_keep)
