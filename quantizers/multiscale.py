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
from torch import Tensor, nn

from quantizers.base import Grid, Quantized, Quantizer
from quantizers.inner import checked_inner, codes_in
from quantizers.means import mean_square
from quantizers.scales import Resize, Side, Sides, as_map, as_raster, checked_scales, phi_index, resized
from quantizers.straight_through import straight_through


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
        self.scales = checked_scales(scales)
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
        other.scales = checked_scales(scales)
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

    def _stream_vectors(self, codes_BNS: Tensor) -> Tensor:
        return self.quantizer._stream_vectors(codes_BNS)

    def add_scale(self, sum_BND: Tensor | None, codes_BNS: Tensor, scale: int) -> Tensor:
        """The sum [B, h w, D] of all scales so far, with the codes [B, n, S] of scale number `scale` added to it.

        A generator of scales calls it after each; it begins with None. `ValueError` for codes of another scale.
        """
        sides = self._sides(scale)
        self._check_codes(codes_BNS)
        if codes_BNS.shape[1] != sides[0] * sides[1]:
            raise ValueError(f"codes_BNS has {codes_BNS.shape[1]} positions: scale={scale} is a grid of {sides}")
        sum_BDhw = None if sum_BND is None else self._sum_map(sum_BND)
        with torch.autocast(codes_BNS.device.type, enabled=False):
            return as_raster(self._added(sum_BDhw, codes_BNS, scale))

    def scale_input(self, sum_BND: Tensor, scale: int, resize: Resize = "area") -> Tensor:
        """What a generator is fed at the positions of a scale: the sum of all scales before it, resized to it.

        sum_BND  [B, h w, D], see `add_scale`; the result is [B, n, D]
        resize   "area" for VAR; Infinity takes "bilinear", downwards too
        """
        return as_raster(resized(self._sum_map(sum_BND), self._sides(scale), resize))

    def next_scale_inputs(self, codes_BLS: Tensor, resize: Resize = "area") -> Tensor:
        """The inputs of every scale but the first, [B, L - L_first, D], for teacher forcing; see `scale_input`."""
        sums = self.running_sums(codes_BLS)[:-1]
        parts = [self.scale_input(sum_BND, scale, resize) for scale, sum_BND in enumerate(sums, 1)]
        return torch.cat(parts, 1) if parts else codes_BLS.new_zeros(len(codes_BLS), 0, self.dim, dtype=torch.float32)

    def running_sums(self, codes_BLS: Tensor) -> list[Tensor]:
        """The sum [B, h w, D] after every scale, from coarse to fine; the last one is what `decode` gives."""
        self._check_codes(codes_BLS)
        with torch.autocast(codes_BLS.device.type, enabled=False):
            return [as_raster(sum_BDhw) for sum_BDhw in self._sums(codes_BLS)]

    def bit_flips(self, batch: int, probability: float | Sequence[float], generator: torch.Generator) -> Tensor:
        """Which bits `self_corrected` shall flip, bool [B, L, D]: each with the probability of its scale.

        probability  of all scales, or one for each
        """
        each = [probability] * len(self.scales) if isinstance(probability, float | int) else list(probability)
        if len(each) != len(self.scales) or not all(0 <= p <= 1 for p in each):
            raise ValueError(f"probability={probability}: expected a number in [0, 1], or {len(self.scales)} of them")
        every = [p for p, (h, w) in zip(each, self.scales, strict=True) for _ in range(h * w)]
        uniform_BLD = torch.rand(batch, len(every), self.dim, generator=generator, device=generator.device)
        return uniform_BLD < torch.tensor(every, device=generator.device)[:, None]

    @torch.no_grad()
    def self_corrected(self, z_BND: Tensor, flip_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and shown codes, [B, L, S] each, of Infinity's bitwise self-correction.

        Scale by scale, what is left is quantized: that is the target. Then the bits in `flip_BLD` are flipped: those
        codes are shown, and it is with them that what is left goes on, so that later targets repair the mistake. A
        generator is fed `next_scale_inputs` of the shown codes and learns the targets; where nothing is flipped both
        are what `encode` gives.

        z_BND     what `encode` takes. Where only codes are kept, `decode` of them serves: what all scales together
                  left of the features is lost, so targets repair towards the decoded vectors, and where nothing is
                  flipped they come near the codes but need not equal them
        flip_BLD  bool, see `bit_flips`; channel d of a position is the bit that gives channel d of its vector

        `ValueError` unless the quantizer inside is one of bits.
        """
        self._check_vectors(z_BND, self.in_dim)
        shape = (len(z_BND), self.length(z_BND.shape[1]), self.dim)
        if flip_BLD.shape != shape or flip_BLD.dtype != torch.bool:
            raise ValueError(f"flip_BLD is {flip_BLD.dtype} of shape {tuple(flip_BLD.shape)}: expected bool of {shape}")
        self._check_finite(z_BND)
        with torch.autocast(z_BND.device.type, enabled=False):
            return self._quantized(z_BND.float(), flip_BLD.to(z_BND.device))

    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        if mask_BN is not None:
            raise ValueError(f"mask_BN: {self.kind} takes whole grids only, scales cannot leave positions out")
        f_BDhw = as_map(z_BND, self.scales[-1])
        left_BDhw, sum_BDhw = f_BDhw, torch.zeros_like(f_BDhw)
        outs: list[Quantized] = []
        losses: list[Tensor] = []
        for i, scale in enumerate(self.scales):
            out = self.quantizer.unchecked(as_raster(resized(left_BDhw, scale, "area")), None)
            h_BDhw = self._spread(self.quantizer._decode(codes_in(out)), i)
            sum_BDhw, left_BDhw = sum_BDhw + h_BDhw, left_BDhw - h_BDhw.detach()
            to_code = mean_square(f_BDhw, sum_BDhw.detach(), None)
            to_input = mean_square(sum_BDhw, f_BDhw.detach(), None)
            losses.append(to_input + self.commitment * to_code + out.loss)
            outs.append(out)
        codes_BLS = torch.cat([codes_in(out) for out in outs], 1)
        stats = {f"scale{i}_{name}": value for i, out in enumerate(outs) for name, value in out.stats.items()}
        q_BND = straight_through(z_BND, as_raster(sum_BDhw))
        return Quantized(q_BND, codes_BLS, torch.stack(losses).mean(), stats)

    def _encode(self, z_BND: Tensor) -> Tensor:
        return self._quantized(z_BND, None)[0]

    def _quantized(self, z_BND: Tensor, flip_BLD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes of what every scale finds left, and those that are taken off it: the same, or with bits flipped."""
        left_BDhw, codes, shown = as_map(z_BND, self.scales[-1]), [], []
        flips = [] if flip_BLD is None else torch.split(flip_BLD, [h * w for h, w in self.scales], 1)
        for i, scale in enumerate(self.scales):
            codes.append(self.quantizer._encode(as_raster(resized(left_BDhw, scale, "area"))))
            shown.append(self.quantizer.flip_bits(codes[-1], flips[i]) if flips else codes[-1])
            left_BDhw = left_BDhw - self._spread(self.quantizer._decode(shown[-1]), i)
        return torch.cat(codes, 1), torch.cat(shown, 1)

    def _decode(self, codes_BLS: Tensor) -> Tensor:
        return as_raster(self._sums(codes_BLS)[-1])

    def _sums(self, codes_BLS: Tensor) -> list[Tensor]:
        """The sum so far, [B, D, h, w], after every scale."""
        counts = [h * w for h, w in self.scales]
        if codes_BLS.shape[1] != sum(counts):
            raise ValueError(
                f"codes_BNS has {codes_BLS.shape[1]} positions: {self.kind} of {self.scales} has {sum(counts)}"
            )
        sums: list[Tensor] = []
        for i, codes_BNS in enumerate(torch.split(codes_BLS, counts, 1)):
            sums.append(self._added(sums[-1] if sums else None, codes_BNS, i))
        return sums

    def _added(self, sum_BDhw: Tensor | None, codes_BNS: Tensor, i: int) -> Tensor:
        h_BDhw = self._spread(self.quantizer._decode(codes_BNS), i)
        return h_BDhw if sum_BDhw is None else sum_BDhw + h_BDhw

    def _spread(self, q_BND: Tensor, i: int) -> Tensor:
        """Vectors of scale i on the finest grid, [B, D, h, w]."""
        h_BDhw = resized(as_map(q_BND, self.scales[i]), self.scales[-1], self.upscale)
        if not self.phi:
            return h_BDhw
        convolution = self.convolutions[phi_index(i, len(self.scales), self.phi)]
        return (1 - self.phi_ratio) * h_BDhw + self.phi_ratio * cast(Tensor, convolution(h_BDhw))

    def _sum_map(self, sum_BND: Tensor) -> Tensor:
        h, w = self.scales[-1]
        if sum_BND.ndim != 3 or sum_BND.shape[1:] != (h * w, self.dim):
            expected = f"[batch, {h * w}, {self.dim}], the grid of the finest scale"
            raise ValueError(f"sum_BND has shape {tuple(sum_BND.shape)}: expected {expected}")
        return as_map(sum_BND.float(), (h, w))

    def _sides(self, scale: int) -> Sides:
        if not 0 <= scale < len(self.scales):
            raise ValueError(f"scale={scale}: {self.kind} has scales 0..{len(self.scales) - 1}")
        return self.scales[scale]
