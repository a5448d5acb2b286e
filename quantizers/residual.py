"""Residual quantization: SoundStream, An End-to-End Neural Audio Codec (https://arxiv.org/abs/2107.03312), algorithm 1.

Level l quantizes what the levels before it left, r_{l+1} = r_l - sg(q_l), and the vector is the sum of all q_l: any
prefix of the codes is a coarser version of it. The gradient of every r_l is that of z, so each level's loss reaches the
encoder. The loss is the mean over levels: EnCodec (https://arxiv.org/abs/2210.13438) writes a sum and its code takes
the mean; with the mean, weights do not depend on depth. The straight-through gradients of the levels are averaged too:
d(sum)/dz = 1 where every level has that, and projections inside the levels learn.

Quantizer dropout: in training some samples keep only their first levels, so that prefixes decode well.

Shape letters: B batch, N positions, S streams, D channels, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantizers.base import Quantized, Quantizer
from quantizers.inner import Inner, codes_in, inner_quantizers
from quantizers.kernels.residual import residual_encode, residual_errors
from quantizers.means import mean_over
from quantizers.vq import VQ

PerChannel = float | Sequence[float] | None


class Residual(Quantizer):
    """Sum of `depth` quantizers, each of what the ones before it left.

    inner       the quantizers of all levels, or that of the first: each of the others gets a new one of its options
    depth       how many; None takes as many as `inner` has
    shared      one instance serves all levels
    dropout     in training, the share of samples that use their first 1..depth levels only, uniformly; the levels left
                out give a sample no vector, no loss, no statistics, and code 0
    shrink      level l sees its residual times shrink^l, a number or one per channel: for quantizers of a fixed range,
                L - 1 for symmetric FSQ of L levels (vector-quantize-pytorch takes L), 2 for LFQ
    soft_clamp  bound c, a number or one per channel: the input becomes c tanh(z / c) first; 1 + 1 / (L - 1) for FSQ

    Streams are those of level 0, then those of level 1, and so on.
    """

    kind = "residual"
    invertible = False

    def __init__(
        self,
        inner: Inner,
        depth: int | None = None,
        *,
        shared: bool = False,
        dropout: float = 0.0,
        shrink: PerChannel = None,
        soft_clamp: PerChannel = None,
    ) -> None:
        super().__init__()
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout={dropout}: expected a share of the samples, in [0, 1]")
        parts = inner_quantizers(inner, depth, shared, "depth")
        self.quantizers = nn.ModuleList(parts)
        self.depth, self.shared, self.dropout = depth or len(parts), shared, dropout
        self._repeated = isinstance(inner, Quantizer)
        widths = sorted({width for level in self.levels for width in (level.in_dim, level.dim)})
        if len(widths) > 1:
            raise ValueError(f"inner has quantizers of {widths} channels: what is added up must have one width")
        self.in_dim = self.dim = widths[0]
        self.codes = tuple(size for level in self.levels for size in level.codes)
        self.shrink = _positive("shrink", shrink, self.dim)
        self.soft_clamp = _positive("soft_clamp", soft_clamp, self.dim)
        factor_D = torch.tensor(self.shrink or 1.0, dtype=torch.float64).expand(self.dim)
        factor_LD = torch.stack([factor_D**level for level in range(self.depth)]).float()
        bound_D = torch.tensor(self.soft_clamp or 1.0).expand(self.dim).clone()
        self.register_buffer("factor_LD", factor_LD, persistent=False)
        self.register_buffer("bound_D", bound_D, persistent=False)

    factor_LD: Tensor
    bound_D: Tensor

    @property
    def inner(self) -> Inner:
        """The quantizers inside, in the form that was given: one, or a list."""
        return self.levels[0] if self._repeated else self.levels

    @property
    def levels(self) -> list[Quantizer]:
        """The quantizer of every level; one and the same where it is shared."""
        return cast(list[Quantizer], list(self.quantizers) * (self.depth if self.shared else 1))

    def decode_prefix(self, codes_BNS: Tensor) -> Tensor:
        """Vectors [B, N, D] of the codes of the first levels, [B, N, S'] where S' is what so many levels have."""
        ends = [sum(len(level.codes) for level in self.levels[:count]) for count in range(self.depth + 1)]
        if codes_BNS.ndim != 3 or codes_BNS.shape[-1] not in ends:
            raise ValueError(
                f"codes_BNS has shape {tuple(codes_BNS.shape)}: {self.kind} expects [batch, position, one of {ends}]"
            )
        self._check_codes(F.pad(codes_BNS, (0, ends[-1] - codes_BNS.shape[-1])))
        with torch.autocast(codes_BNS.device.type, enabled=False):
            return self._sum(codes_BNS, ends.index(codes_BNS.shape[-1]))

    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        left_BND = self._clamped(z_BND)
        if self._fused and not self.training and not self._needs_gradient(z_BND):
            return self._evaluated(left_BND, mask_BN)
        masks = self._masks(z_BND, mask_BN)
        searched = None if self.training or not self._fused else self._search(left_BND).unbind(-1)
        sum_BND, passed_BND = torch.zeros_like(left_BND), torch.zeros_like(left_BND)
        outs: list[Quantized] = []
        for i, level in enumerate(self.levels):
            if searched is None:
                out = level.unchecked(self._scaled(left_BND, i), masks[i])
            else:
                vq = cast(VQ, level)
                out = vq.chosen(left_BND, searched[i].reshape(-1), vq.rows(), masks[i])
            outs.append(out)
            # In evaluation rows are exact; in training a level may add noise, or have moved its codebook since.
            q_BND = self._unscaled(out.z_BND if self.training else level._decode(codes_in(out)), i).detach()
            sum_BND, left_BND = sum_BND + q_BND, left_BND - q_BND
            passed_BND = passed_BND + self._unscaled(out.z_BND, i)
        if torch.is_grad_enabled() and passed_BND.requires_grad:
            sum_BND = sum_BND + (passed_BND - passed_BND.detach()) / self._used(masks)
        stats = {f"level{i}_{name}": value for i, out in enumerate(outs) for name, value in out.stats.items()}
        loss = torch.stack([out.loss for out in outs]).mean()
        return Quantized(sum_BND, torch.cat([codes_in(out) for out in outs], -1), loss, stats)

    def _encode(self, z_BND: Tensor) -> Tensor:
        left_BND, codes = self._clamped(z_BND), []
        if self._fused:
            return self._search(left_BND)
        for i, level in enumerate(self.levels):
            codes.append(level._encode(self._scaled(left_BND, i)))
            left_BND = left_BND - self._unscaled(level._decode(codes[-1]), i)
        return torch.cat(codes, -1)

    def _decode(self, codes_BNS: Tensor) -> Tensor:
        return self._sum(codes_BNS, self.depth)

    def _stream_vectors(self, codes_BNS: Tensor) -> Tensor:
        codes = torch.split(codes_BNS, [len(level.codes) for level in self.levels], -1)
        levels = enumerate(zip(self.levels, codes, strict=True))
        return torch.cat([self._unscaled(level._stream_vectors(code), i) for i, (level, code) in levels], -2)

    def _sum(self, codes_BNS: Tensor, levels: int) -> Tensor:
        sum_BND = self.factor_LD.new_zeros(*codes_BNS.shape[:2], self.dim)
        start = 0
        for i, level in enumerate(self.levels[:levels]):
            end = start + len(level.codes)
            sum_BND = sum_BND + self._unscaled(level._decode(codes_BNS[..., start:end]), i)
            start = end
        return sum_BND

    @property
    def _fused(self) -> bool:
        """Whether one kernel can search all levels: plain codebooks, whose loss is a multiple of the squared error."""
        return self.shrink is None and all(
            type(level) is VQ and level.metric == "euclidean" and not level.orthogonal for level in self.levels
        )

    def _needs_gradient(self, z_BND: Tensor) -> bool:
        return torch.is_grad_enabled() and (z_BND.requires_grad or any(p.requires_grad for p in self.parameters()))

    def _codebooks(self) -> list[Tensor]:
        return [cast(VQ, level).rows() for level in self.levels]

    def _search(self, z_BND: Tensor) -> Tensor:
        codes_NL, _ = residual_encode(z_BND.reshape(-1, self.dim), self._codebooks())
        return codes_NL.view(*z_BND.shape[:2], self.depth)

    def _evaluated(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        """All levels in one go, where no gradient is wanted."""
        codes_NL, q_ND, error_NL = residual_errors(z_BND.reshape(-1, self.dim), self._codebooks())
        shape = z_BND.shape[:2]
        weight_L = error_NL.new_tensor([_error_weight(cast(VQ, level)) for level in self.levels])
        loss = mean_over(error_NL.view(*shape, self.depth) * (weight_L / self.dim), mask_BN)
        return Quantized(q_ND.view(*shape, self.dim), codes_NL.view(*shape, self.depth), loss)

    def _masks(self, z_BND: Tensor, mask_BN: Tensor | None) -> list[Tensor | None]:
        """Which positions every level serves: all real ones, except where quantizer dropout ends a sample earlier."""
        if not (self.training and self.dropout):
            return [mask_BN] * self.depth
        batch, device = z_BND.shape[0], z_BND.device
        short_B = torch.rand(batch, device=device) < self.dropout
        levels_B = torch.where(short_B, torch.randint(1, self.depth + 1, (batch,), device=device), self.depth)
        kept = [(levels_B > i)[:, None].expand(z_BND.shape[:2]) for i in range(1, self.depth)]
        return [mask_BN, *(mask if mask_BN is None else mask & mask_BN for mask in kept)]

    def _used(self, masks: list[Tensor | None]) -> Tensor | int:
        """How many levels serve a position."""
        if not (self.training and self.dropout):
            return self.depth
        later = [mask[..., None].float() for mask in masks[1:] if mask is not None]
        return 1 + sum(later)

    def _clamped(self, z_BND: Tensor) -> Tensor:
        return z_BND if self.soft_clamp is None else self.bound_D * torch.tanh(z_BND / self.bound_D)

    def _scaled(self, z_BND: Tensor, level: int) -> Tensor:
        return z_BND if self.shrink is None else z_BND * self.factor_LD[level]

    def _unscaled(self, q_BND: Tensor, level: int) -> Tensor:
        return q_BND if self.shrink is None else q_BND / self.factor_LD[level]


def _error_weight(vq: VQ) -> float:
    """How the loss of `vq` weighs |z - q|^2, whatever part of it has which gradient."""
    return vq.commitment + (vq.codebook == "gradient" and vq.estimator != "diveq")


def _positive(name: str, value: PerChannel, dim: int) -> float | list[float] | None:
    """One factor for all channels or one for each, as plain data; `ValueError` unless all are positive."""
    if value is None:
        return None
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
    if len(values) not in ({dim} if isinstance(value, Sequence) else {1}) or not all(0 < v < math.inf for v in values):
        raise ValueError(f"{name}={value}: expected a positive number, or one for each of the {dim} channels")
    return values if isinstance(value, Sequence) else values[0]
