"""Multi-scale residual quantization: Visual Autoregressive Modeling, VAR (https://arxiv.org/abs/2404.02905).

A grid of vectors becomes grids of codes from coarse to fine. Scale by scale, what is left is averaged down to the
scale, quantized, interpolated up again, blended with a 3x3 convolution of itself, phi(h) = (1 - r) h + r conv(h), and
taken off what is left. The grid is the sum of all scales. The loss is the mean over scales of |f_hat - sg f|^2 +
commitment |sg f_hat - f|^2, with f_hat the sum so far, plus the mean loss of the quantizer inside. With bits inside
(BSQ or LFQ) and no convolutions it is the quantizer of Infinity (https://arxiv.org/abs/2412.04431).

Shape letters: B batch, N positions of the finest grid, h and w its sides, L code positions of all scales, S streams,
D channels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantizers.base import Grid, Quantized, Quantizer, mean_square
from quantizers.inner import checked_inner, codes_in
from quantizers.straight_through import straight_through

Side = int | Sequence[int]


class MultiScale(Quantizer):
    """One quantizer shared by all scales of a grid.

    inner       the quantizer inside: VQ for VAR, BSQ or LFQ for Infinity (which has phi=0)
    scales      from coarse to fine, each a side or (h, w); the last is the grid it receives, in raster order
    phi         number of convolutions, each serving the scales next to it in depth; 0 has none
    phi_ratio   r, the share of the convolution
    upscale     "bicubic" or "bilinear"
    commitment  weight of |sg f_hat - f|^2, to which the inner quantizer's own loss, commitment included, is added; it
                alone keeps the input where the sums can follow when the codes are fixed (bits): give it more there

    `encode` gives the codes of all scales one after the other, [B, L, S]; `decode` gives the finest grid, [B, h w, D].
    A gradient codebook inside learns from |f_hat - sg f|^2 as well as from its own loss.
    """

    kind = "multiscale"
    invertible = False
    pointwise = False

    def __init__(
        self,
        inner: Quantizer,
        scales: Sequence[Side],
        *,
        phi: int = 4,
        phi_ratio: float = 0.5,
        upscale: Literal["bicubic", "bilinear"] = "bicubic",
        commitment: float = 0.25,
    ) -> None:
        super().__init__()
        if phi < 0 or not 0 <= phi_ratio <= 1 or commitment < 0:
            raise ValueError(
                f"phi={phi}, phi_ratio={phi_ratio}, commitment={commitment}: expected a number of convolutions, "
                "a share in [0, 1] and a weight, none negative"
            )
        if upscale not in ("bicubic", "bilinear"):
            raise ValueError(f"upscale={upscale!r}: expected bicubic or bilinear")
        self.scales = _checked(scales)
        self.quantizer = checked_inner(inner)
        if self.quantizer.in_dim != self.quantizer.dim:
            raise ValueError(f"inner takes {self.quantizer.in_dim} channels and gives {self.quantizer.dim}: must agree")
        self.phi, self.phi_ratio, self.upscale, self.commitment = phi, phi_ratio, upscale, commitment
        self.in_dim = self.dim = self.quantizer.dim
        self.codes = self.quantizer.codes
        self.convolutions = nn.ModuleList(nn.Conv2d(self.dim, self.dim, 3, padding=1) for _ in range(phi))

    @property
    def inner(self) -> Quantizer:
        """The quantizer inside."""
        return self.quantizer

    def with_scales(self, scales: Sequence[Side]) -> Self:
        """The same weights, shared and not copied, for a grid of another size or with other scales."""
        other = copy.copy(self)
        other.scales = _checked(scales)
        return other

    def length(self, positions: int) -> int:
        """Code positions of all scales; `ValueError` unless `positions` is that of the finest."""
        h, w = self.scales[-1]
        if positions != h * w:
            raise ValueError(f"z_BND has {positions} positions: {self.kind} expects {h * w}, a grid of {h} x {w}")
        return sum(h * w for h, w in self.scales)

    def code_grid(self, grid: Grid) -> Grid:
        """All scales; `ValueError` unless the map's grid is the finest."""
        if tuple(grid) != self.scales[-1]:
            raise ValueError(f"grid={grid}: {self.kind} expects {self.scales[-1]}, the finest of its scales")
        return self.scales

    def input_grid(self, grid: Grid) -> Grid:
        """The finest scale; `ValueError` unless the codes are those of its own scales."""
        if tuple(grid) != self.scales:
            raise ValueError(f"grid={grid}: {self.kind} decodes its own scales, {self.scales}")
        return self.scales[-1]

    def vectors(self, codes_BNS: Tensor) -> Tensor:
        """Vectors [B, L, D] of the codes [B, L, S] alone, before they are spread over the grid and added up."""
        return self.quantizer.decode(codes_BNS)

    def next_scale_inputs(self, codes_BLS: Tensor) -> Tensor:
        """What a next-scale generator is fed: before every scale but the first, the sum so far averaged down to it.

        Returns [B, L - L_first, D] for codes [B, L, S].
        """
        sums = self.running_sums(codes_BLS)
        parts = [
            _raster(_averaged(_grid(sum_BND, self.scales[-1]), scale))
            for sum_BND, scale in zip(sums, self.scales[1:], strict=False)
        ]
        return torch.cat([sums[0][:, :0], *parts], 1)

    def running_sums(self, codes_BLS: Tensor) -> list[Tensor]:
        """The sum [B, h w, D] after every scale, from coarse to fine; the last one is what `decode` gives."""
        self._check_codes(codes_BLS)
        with torch.autocast(codes_BLS.device.type, enabled=False):
            return [_raster(sum_BDhw) for sum_BDhw in self._sums(codes_BLS)]

    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        if mask_BN is not None:
            raise ValueError(f"mask_BN: {self.kind} takes whole grids only, scales cannot leave positions out")
        f_BDhw = _grid(z_BND, self.scales[-1])
        left_BDhw, sum_BDhw = f_BDhw, torch.zeros_like(f_BDhw)
        outs: list[Quantized] = []
        losses: list[Tensor] = []
        for i, scale in enumerate(self.scales):
            out = self.quantizer.unchecked(_raster(_averaged(left_BDhw, scale)), None)
            h_BDhw = self._spread(self.quantizer._decode(codes_in(out)), i)
            sum_BDhw, left_BDhw = sum_BDhw + h_BDhw, left_BDhw - h_BDhw.detach()
            to_code = mean_square(f_BDhw, sum_BDhw.detach(), None)
            to_input = mean_square(sum_BDhw, f_BDhw.detach(), None)
            losses.append(to_input + self.commitment * to_code + out.loss)
            outs.append(out)
        codes_BLS = torch.cat([codes_in(out) for out in outs], 1)
        stats = {f"scale{i}_{name}": value for i, out in enumerate(outs) for name, value in out.stats.items()}
        q_BND = straight_through(z_BND, _raster(sum_BDhw))
        return Quantized(q_BND, codes_BLS, torch.stack(losses).mean(), stats)

    def _encode(self, z_BND: Tensor) -> Tensor:
        left_BDhw, codes = _grid(z_BND, self.scales[-1]), []
        for i, scale in enumerate(self.scales):
            codes.append(self.quantizer._encode(_raster(_averaged(left_BDhw, scale))))
            left_BDhw = left_BDhw - self._spread(self.quantizer._decode(codes[-1]), i)
        return torch.cat(codes, 1)

    def _decode(self, codes_BLS: Tensor) -> Tensor:
        return _raster(self._sums(codes_BLS)[-1])

    def _sums(self, codes_BLS: Tensor) -> list[Tensor]:
        """The sum so far, [B, D, h, w], after every scale."""
        counts = [h * w for h, w in self.scales]
        if codes_BLS.shape[1] != sum(counts):
            raise ValueError(
                f"codes_BNS has {codes_BLS.shape[1]} positions: {self.kind} of {self.scales} has {sum(counts)}"
            )
        sums: list[Tensor] = []
        for i, codes_BNS in enumerate(torch.split(codes_BLS, counts, 1)):
            h_BDhw = self._spread(self.quantizer._decode(codes_BNS), i)
            sums.append(sums[-1] + h_BDhw if sums else h_BDhw)
        return sums

    def _spread(self, q_BND: Tensor, i: int) -> Tensor:
        """Vectors of scale i on the finest grid, [B, D, h, w]."""
        h_BDhw, scale = _grid(q_BND, self.scales[i]), self.scales[i]
        if scale != self.scales[-1]:
            h_BDhw = F.interpolate(h_BDhw, self.scales[-1], mode=self.upscale, align_corners=False)
        if not self.phi:
            return h_BDhw
        convolution = self.convolutions[phi_index(i, len(self.scales), self.phi)]
        return (1 - self.phi_ratio) * h_BDhw + self.phi_ratio * cast(Tensor, convolution(h_BDhw))


def phi_index(scale: int, scales: int, convolutions: int) -> int:
    """Which of the partially shared convolutions serves a scale: the one whose tick is nearest to its relative depth.

    As in VAR's code, in float64: where two ticks are equally near, rounding decides, and weights depend on how.
    """
    margin = 1 / 3 / convolutions if convolutions == 4 else 1 / 2 / convolutions
    step = (1 - margin - margin) / max(convolutions - 1, 1)
    ticks = [i * step + margin for i in range(convolutions)]
    if convolutions > 1:
        ticks[-1] = 1 - margin
    depth = scale / max(scales - 1, 1)
    distances = [abs(tick - depth) for tick in ticks]
    return distances.index(min(distances))


def _checked(scales: Sequence[Side]) -> tuple[tuple[int, int], ...]:
    try:
        pairs = tuple((int(s), int(s)) if isinstance(s, int) else (int(s[0]), int(s[1])) for s in scales)
        fine = all(isinstance(s, int) or len(s) == 2 for s in scales)
    except (TypeError, ValueError, IndexError):
        pairs, fine = (), False
    if not fine or not pairs or any(not (1 <= h <= pairs[-1][0] and 1 <= w <= pairs[-1][1]) for h, w in pairs):
        raise ValueError(f"scales={scales!r}: expected sides or (h, w), each at least 1 and none larger than the last")
    return pairs


def _grid(x_BND: Tensor, scale: tuple[int, int]) -> Tensor:
    return x_BND.transpose(1, 2).reshape(x_BND.shape[0], x_BND.shape[2], *scale)


def _raster(x_BDhw: Tensor) -> Tensor:
    return x_BDhw.flatten(2).transpose(1, 2)


def _averaged(x_BDhw: Tensor, scale: tuple[int, int]) -> Tensor:
    return x_BDhw if x_BDhw.shape[2:] == scale else F.interpolate(x_BDhw, scale, mode="area")
