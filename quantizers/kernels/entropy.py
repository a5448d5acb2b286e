"""Entropies of a code of independent bits: Language Model Beats Diffusion (https://arxiv.org/abs/2310.05737), exactly.

A vector gives every bit a probability p_i = sigmoid(logit_i), so the distribution over its 2^d codes is a product and

    sample entropy    = mean over vectors of sum_i H(p_i)
    codebook entropy  = H(mean over vectors of the distribution over 2^d codes)

The mean is one matrix product, P_A^T P_B / N, of the distributions over the codes of the first and the second half of
the bits: no 2^d for every vector. Vectors are taken in blocks, and again in the backward pass, whose formulas are
written out. Groups of bits taken as independent (https://arxiv.org/abs/2406.07548) make long codes affordable.

Shape letters: N vectors, D bits, G groups, R vectors of one block, W bits of one half, U codes of the first half of a
group's bits, V of the second (U V = 2^(D / G)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from quantizers.distributed import processes, sum_over_processes

MOST_BITS = 20

# Of tables at a time. On a CPU they stay near the caches; elsewhere every launch needs enough work.
_BLOCK_BYTES, _DEVICE_BLOCK_BYTES = 4 * 2**20, 16 * 2**20


def bit_entropy(
    logits_ND: Tensor, *, group: int | None = None, weight_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sample entropy and codebook entropy, scalars in nats, differentiable with respect to the logits.

    logits_ND  log-odds of every bit being set
    group      bits of one group: the codebook entropy is the sum over groups of consecutive bits, an upper bound; None
               is the joint entropy of all bits
    weight_N   share of every vector in both means, for instance a mask; without any weight both are zero

    Over processes, the codebook entropy is that of all their vectors. Gradients are scaled so that their average over
    processes is that of the joined batch; likewise the values of the sample entropy.
    Extra memory is a block and two tables of 2^group numbers for each group; time is proportional to N 2^group.
    `ValueError` where the group does not divide the bits or exceeds 20.
    """
    if logits_ND.ndim != 2 or not logits_ND.is_floating_point():
        raise ValueError(
            f"logits_ND is {logits_ND.dtype} of shape {tuple(logits_ND.shape)}: expected a float type, [N, D]"
        )
    group = group_bits(logits_ND.shape[1], group)
    if weight_N is not None and weight_N.shape != logits_ND.shape[:1]:
        raise ValueError(f"weight_N has shape {tuple(weight_N.shape)}: expected [{len(logits_ND)}]")
    weight_N = None if weight_N is None else weight_N.detach().float()
    sample, codebook, _, _ = _bit_entropy(logits_ND.float().contiguous(), weight_N, group)
    return sample, codebook


def group_bits(dim: int, group: int | None, name: str = "group") -> int:
    """Bits of a group, all of them for None; `ValueError`, naming the argument, unless 1..20 that divide dim."""
    if group is None and dim > MOST_BITS:
        raise ValueError(
            f"{name}=None: the joint entropy of {dim} bits has 2^{dim} terms; expected a divisor of {dim} up to "
            f"{MOST_BITS}, the bits that are taken together"
        )
    group = dim if group is None else group
    if not 1 <= group <= MOST_BITS or dim % group:
        raise ValueError(f"{name}={group}: expected a divisor of {dim} in 1..{MOST_BITS}")
    return group


def half_distributions(logits_DR: Tensor, weight_R: Tensor | None, group: int) -> tuple[Tensor, Tensor]:
    """Weighted distributions [G, U, R] over the first halves of all groups, and plain ones [G, V, R] over the second.

    The table doubles with every bit: each code so far becomes one with the bit set and one without.
    """
    groups, rows = len(logits_DR) // group, logits_DR.shape[1]
    set_GWR, unset_GWR = (torch.sigmoid(x).view(groups, group, rows) for x in (logits_DR, -logits_DR))
    halves = []
    for bits, weight in ((range(group // 2), weight_R), (range(group // 2, group), None)):
        table_GUR = logits_DR.new_empty(groups, 2 ** len(bits), rows)
        table_GUR[:, 0] = 1 if weight is None else weight
        for i, bit in enumerate(bits):
            known_GUR, p_G1R = table_GUR[:, : 2**i], set_GWR[:, bit, None]
            torch.mul(known_GUR, p_G1R, out=table_GUR[:, 2**i : 2 ** (i + 1)])
            known_GUR *= unset_GWR[:, bit, None]
        halves.append(table_GUR)
    return halves[0], halves[1]


def bernoulli_entropy(logits: Tensor) -> Tensor:
    """Entropy of every bit, log(1 + e^-a) + a / (1 + e^a) with a = |logit|: nothing cancels in the tails."""
    size = logits.abs()
    return torch.log1p(torch.exp(-size)) + size * torch.sigmoid(-size)


def _blocks(logits_ND: Tensor, group: int) -> Iterator[slice]:
    count, dim = logits_ND.shape
    row_bytes = 8 * (dim // group) * (2 ** (group // 2) + 2 ** (group - group // 2))
    block_bytes = _BLOCK_BYTES if logits_ND.device.type == "cpu" else _DEVICE_BLOCK_BYTES
    rows = max(16, block_bytes // row_bytes)
    return (slice(start, start + rows) for start in range(0, count, rows))


def _wide(device: torch.device) -> torch.dtype:
    """Return float64, for differences of probabilities that are almost equal; Apple's GPUs have none."""
    return torch.float32 if device.type == "mps" else torch.float64


@torch.library.custom_op("quantizers::bit_entropy", mutates_args=())
def _bit_entropy(logits_ND: Tensor, weight_N: Tensor | None, group: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both entropies; for the backward pass the slope -log(mean) - H of every code and the share of a unit weight."""
    groups, first, second = logits_ND.shape[1] // group, 2 ** (group // 2), 2 ** (group - group // 2)
    wide = _wide(logits_ND.device)
    mean_GUV = logits_ND.new_zeros(groups, first, second, dtype=wide)
    sample, total = logits_ND.new_zeros(2, dtype=wide)
    for rows in _blocks(logits_ND, group):
        logits_DR = logits_ND[rows].T.contiguous().to(wide)
        weight_R = None if weight_N is None else weight_N[rows].to(wide)
        entropy_R = bernoulli_entropy(logits_DR).sum(0)
        sample += entropy_R.sum() if weight_R is None else entropy_R @ weight_R
        total += len(entropy_R) if weight_R is None else weight_R.sum()
        first_GUR, second_GVR = half_distributions(logits_DR, weight_R, group)
        mean_GUV.baddbmm_(first_GUR, second_GVR.mT)
    sum_over_processes(mean_GUV)
    sum_over_processes(total)
    share = torch.where(total > 0, processes() / total, 0.0)
    # Relative to the uniform distribution: its logarithm is zero, where rounding would hide what differs from it.
    codes = first * second
    mean_GUV *= share * (codes / processes())
    log_GUV = mean_GUV.clamp(min=torch.finfo(mean_GUV.dtype).tiny).log_()
    excess_G = mean_GUV.mul_(log_GUV).mean((1, 2))  # sum of mean log(codes mean)
    # The mean slope has no effect, as probabilities sum to one.
    slope_GUV = log_GUV.sub_(excess_G[:, None, None]).neg_()
    codebook = torch.where(total > 0, groups * math.log(codes) - excess_G.sum(), 0.0)
    return (sample * share).float(), codebook.float(), slope_GUV, share


@_bit_entropy.register_fake
def _(logits_ND: Tensor, weight_N: Tensor | None, group: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    size = (logits_ND.shape[1] // group, 2 ** (group // 2), 2 ** (group - group // 2))
    slope_GUV, share = (logits_ND.new_empty(shape, dtype=_wide(logits_ND.device)) for shape in (size, ()))
    return logits_ND.new_empty(()), logits_ND.new_empty(()), slope_GUV, share


@torch.library.custom_op("quantizers::bit_entropy_backward", mutates_args=())
def _bit_entropy_backward(
    logits_ND: Tensor, weight_N: Tensor | None, slope_GUV: Tensor, sample: Tensor, codebook: Tensor, group: int
) -> Tensor:
    """Gradient [N, D] of sample * (sum of sample entropies) + codebook * (sum over codes of slope * weighted sum of p).

    With p the product over bits, dp(c) / dlogit_i = p(c) (c_i - p_i), so the second part is
    (1 - p_i) sum_{c_i = 1} p(c) slope(c) - p_i sum_{c_i = 0} p(c) slope(c).
    """
    gradient_ND = torch.empty_like(logits_ND)
    first_bits, second_bits = group // 2, group - group // 2
    for rows in _blocks(logits_ND, group):
        logits_DR = logits_ND[rows].T.contiguous().to(slope_GUV.dtype)
        weight_R = None if weight_N is None else weight_N[rows].to(slope_GUV.dtype)
        first_GUR, second_GVR = half_distributions(logits_DR, weight_R, group)
        pulled_GUR = torch.bmm(slope_GUV, second_GVR).mul_(first_GUR)
        pulled_GVR = torch.bmm(slope_GUV.mT, first_GUR).mul_(second_GVR)
        sums = zip(_sums_by_bit(pulled_GUR, first_bits), _sums_by_bit(pulled_GVR, second_bits), strict=True)
        set_DR, unset_DR = (torch.cat(halves, 1).flatten(0, 1) for halves in sums)
        p_DR, rest_DR = torch.sigmoid(logits_DR), torch.sigmoid(-logits_DR)
        own_DR = logits_DR * p_DR * rest_DR * -sample
        own_DR = own_DR if weight_R is None else own_DR * weight_R
        gradient_ND[rows] = own_DR.add_((set_DR * rest_DR - unset_DR * p_DR) * codebook).T
    return gradient_ND


@_bit_entropy_backward.register_fake
def _(
    logits_ND: Tensor, weight_N: Tensor | None, slope_GUV: Tensor, sample: Tensor, codebook: Tensor, group: int
) -> Tensor:
    return torch.empty_like(logits_ND)


def _sums_by_bit(table_GUR: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Sums [G, W, R] over the codes with each bit set, and over those without."""
    code_U, bit_W = (torch.arange(n, device=table_GUR.device) for n in (2**bits, bits))
    set_WU = (code_U >> bit_W[:, None] & 1).to(table_GUR.dtype)
    return torch.matmul(set_WU, table_GUR), torch.matmul(1 - set_WU, table_GUR)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits_ND, weight_N, ctx.group = inputs
    _, _, slope_GUV, share = output
    ctx.save_for_backward(logits_ND, weight_N, slope_GUV, share)


def _backward(ctx: Any, sample: Tensor, codebook: Tensor, _slope: Tensor, _share: Tensor) -> tuple[Tensor, None, None]:
    logits_ND, weight_N, slope_GUV, share = ctx.saved_tensors
    gradient_ND = _bit_entropy_backward(logits_ND, weight_N, slope_GUV, sample * share, codebook * share, ctx.group)
    return gradient_ND, None, None


_bit_entropy.register_autograd(_backward, setup_context=_save)
