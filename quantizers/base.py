"""The quantizer contract: vectors <-> codes, one layout, one output type, one set of verbs.

    forward(z, mask)  training: straight-through vectors, codes, auxiliary loss, statistics
    encode(z)         what travels: codes [B, N, S] (or, for a continuous bottleneck, latents [B, N, D])
    decode(codes)     the vectors the codes stand for
    codes_of(q)       exact inverse of decode, where there is one

Shape letters: B batch, N positions, S streams (codes per position), D channels. Layout is always [B, N, channel].
Arithmetic is float32 whatever the autocast: low-precision distances lose codes. Values are checked in eager mode only:
under `torch.compile` and `torch.export` a check would break the graph, so bad values go through there.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

Grid = tuple[Any, ...]  # (h, w) in raster order, (n,) without a place, or ((h1, w1), (h2, w2), ...) from coarse to fine


@dataclass(frozen=True, eq=False)
class Quantized:
    """Output of every quantizer's forward.

    z_BND      vectors for the decoder; gradients flow straight through to the input; zero where masked out
    codes_BNS  int64 codes, None for a continuous bottleneck; zero where masked out
    loss       scalar auxiliary loss in float32 (commitment, KL, ...), zero where there is none
    stats      detached scalars worth logging
    """

    z_BND: Tensor
    codes_BNS: Tensor | None
    loss: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)


class Quantizer(nn.Module, ABC):
    """Base of all quantizers: argument checks, masks and the float32 guarantee.

    Every constructor argument is kept as an attribute of the same name, so `options()` can rebuild the instance.
    What only some kinds have is asked of all of them, and the plain answer is here: a posterior, several scales.

    in_dim      channels of the vectors it receives; dim  channels of those it returns
    moments     channels received for each one returned: 2 where they are mean and log-variance
    codes       vocabulary of each stream; empty for a continuous bottleneck (then `encode` gives latents)
    invertible  whether `codes_of` undoes `decode`; sums of vectors (residuals) and projections do not allow it
    pointwise   whether positions are quantized one by one; composites take only such quantizers inside
    """

    kind: ClassVar[str]
    in_dim: int
    dim: int
    codes: tuple[int, ...]
    moments: int = 1
    invertible: bool = True
    pointwise: bool = True

    def options(self) -> dict[str, Any]:
        """Constructor arguments plus `kind`: JSON-able, and enough to build the same quantizer again."""
        names = list(inspect.signature(type(self)).parameters)
        return {"kind": self.kind} | {name: _plain(getattr(self, name)) for name in names}

    def fresh(self) -> Self:
        """A new quantizer of the same options, with initial values of its own."""
        names = inspect.signature(type(self)).parameters
        return type(self)(**{name: _fresh(getattr(self, name)) for name in names})

    @property
    def bits(self) -> float:
        """Bits of one position's codes, sum(log2 V) over streams; 0 for a continuous bottleneck."""
        return sum(math.log2(size) for size in self.codes)

    def length(self, positions: int) -> int:
        """Number of code positions that this many input positions become; `ValueError` where it takes other numbers."""
        return positions

    def code_grid(self, grid: Grid) -> Grid:
        """Grid of the codes of a map with this grid: the same, but for a kind that has scales."""
        return grid

    def input_grid(self, grid: Grid) -> Grid:
        """Grid of the map that codes of this grid are decoded to; `ValueError` where it decodes others."""
        return grid

    def with_scales(self, scales: Sequence[int | Sequence[int]]) -> Self:
        """The same weights, shared, for other scales; `ValueError` where there are none."""
        raise ValueError(f"scales={scales}: {self.kind} has no scales, it takes any image size as it is")

    def forward(self, z_BND: Tensor, mask_BN: Tensor | None = None) -> Quantized:
        """Quantize with straight-through gradients.

        mask_BN  bool, True where a position is real; the others may hold anything, and give zero vectors and codes,
                 no loss, no gradient and no statistics
        """
        self._check_vectors(z_BND, self.in_dim)
        self.length(z_BND.shape[1])
        if mask_BN is not None:
            self._check_mask(mask_BN, z_BND)
            z_BND = torch.where(mask_BN[..., None], z_BND.float(), 0.0)
        self._check_finite(z_BND)
        with torch.autocast(z_BND.device.type, enabled=False):
            return self.unchecked(z_BND.float(), mask_BN)

    def unchecked(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        """`forward` for quantizers made of others: float32 vectors that were checked, masked ones may hold anything."""
        if mask_BN is None:
            return self._forward(z_BND, None)
        out = self._forward(torch.where(mask_BN[..., None], z_BND, 0.0), mask_BN)
        codes_BNS = None if out.codes_BNS is None else torch.where(mask_BN[..., None], out.codes_BNS, 0)
        return replace(out, z_BND=torch.where(mask_BN[..., None], out.z_BND, 0.0), codes_BNS=codes_BNS)

    @torch.no_grad()
    def encode(self, z_BND: Tensor) -> Tensor:
        """Codes [B, N, S] int64 of vectors [B, N, in_dim]; a continuous bottleneck returns latents [B, N, dim]."""
        self._check_vectors(z_BND, self.in_dim)
        self.length(z_BND.shape[1])
        self._check_finite(z_BND)
        with torch.autocast(z_BND.device.type, enabled=False):
            return self._encode(z_BND.float())

    def decode(self, codes_BNS: Tensor) -> Tensor:
        """Vectors [B, N, dim] of codes [B, N, S] (continuous: of latents). `ValueError` on codes out of range."""
        if self.codes:
            self._check_codes(codes_BNS)
        else:
            self._check_vectors(codes_BNS, self.dim)
        with torch.autocast(codes_BNS.device.type, enabled=False):
            return self._decode(codes_BNS)

    def vectors(self, codes_BNS: Tensor) -> Tensor:
        """Vectors [B, N, dim] of the codes' own positions, one each: what a model of the codes is fed.

        The same as `decode` wherever a code position is a position of the map.
        """
        return self.decode(codes_BNS)

    def stream_vectors(self, codes_BNS: Tensor) -> Tensor:
        """What each stream contributes to the vectors, [B, N, S, dim]: over streams they sum to `vectors`.

        One stream: the vector itself. Residual: the vector that each level adds, so that running sums over streams are
        the vectors of shorter prefixes (a depth transformer's input, as in VILA-U, https://arxiv.org/abs/2409.04429).
        Product, and several streams of bits: the channels of that stream, zero elsewhere, so that each stream's can
        be read off (UniTok, https://arxiv.org/abs/2502.20321). Projected: the same through the map out, whose bias the
        first stream has. `ValueError` where there are no codes.
        """
        if not self.codes:
            raise ValueError(f"{self.kind} has no streams: what it gives are latents")
        self._check_codes(codes_BNS)
        with torch.autocast(codes_BNS.device.type, enabled=False):
            return self._stream_vectors(codes_BNS)

    def flip_bits(self, codes_BNS: Tensor, flip_BND: Tensor) -> Tensor:
        """Codes whose vectors have the other sign where `flip_BND` is True; `ValueError` where codes are not bits."""
        raise ValueError(f"{self.kind} has no bits to flip: only lfq and bsq have")

    def posterior(self, z_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each [B, N, dim], of vectors [B, N, in_dim]; `ValueError` where there are none."""
        raise ValueError(f"{self.kind} has no posterior: only gaussian has")

    def sample(self, z_BND: Tensor, generator: torch.Generator) -> Tensor:
        """Latents [B, N, dim] drawn from the posterior with this generator; `ValueError` where there is none."""
        raise ValueError(f"{self.kind} has no posterior to sample from: only gaussian has")

    @torch.no_grad()
    def codes_of(self, q_BND: Tensor) -> Tensor:
        """Codes of vectors that `decode` returned: its exact inverse. `ValueError` where the kind has none."""
        if not self.invertible:
            raise ValueError(f"{self.kind} cannot read codes off vectors: keep the codes that encode gave")
        self._check_vectors(q_BND, self.dim)
        with torch.autocast(q_BND.device.type, enabled=False):
            return self._codes_of(q_BND.float())

    @abstractmethod
    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized: ...

    @abstractmethod
    def _encode(self, z_BND: Tensor) -> Tensor: ...

    @abstractmethod
    def _decode(self, codes_BNS: Tensor) -> Tensor: ...

    def _stream_vectors(self, codes_BNS: Tensor) -> Tensor:
        if len(self.codes) > 1:
            raise ValueError(f"{self.kind} does not tell what each of its {len(self.codes)} streams contributes")
        return self._decode(codes_BNS)[..., None, :]

    def _codes_of(self, q_BND: Tensor) -> Tensor:
        return self._encode(q_BND)

    def _check_vectors(self, z_BND: Tensor, dim: int) -> None:
        if z_BND.ndim != 3 or z_BND.shape[-1] != dim:
            raise ValueError(f"z_BND has shape {tuple(z_BND.shape)}: {self.kind} expects [batch, position, {dim}]")
        if not z_BND.is_floating_point():
            raise ValueError(f"z_BND is {z_BND.dtype}: {self.kind} expects a float type")

    def _check_finite(self, z_BND: Tensor) -> None:
        # The sum is one fast pass; only where it is not finite (or overflowed) is every value looked at.
        if torch.compiler.is_compiling() or math.isfinite(float(z_BND.detach().sum(dtype=torch.float32))):
            return
        bad = int((~torch.isfinite(z_BND)).sum())
        if bad:
            raise ValueError(f"z_BND has {bad} NaN or Inf of {z_BND.numel()} values: {self.kind} expects finite ones")

    def _check_mask(self, mask_BN: Tensor, z_BND: Tensor) -> None:
        if mask_BN.dtype != torch.bool or mask_BN.shape != z_BND.shape[:2]:
            raise ValueError(
                f"mask_BN is {mask_BN.dtype} of shape {tuple(mask_BN.shape)}: "
                f"{self.kind} expects torch.bool of shape {tuple(z_BND.shape[:2])}, True where a position is real"
            )

    def _check_codes(self, codes_BNS: Tensor) -> None:
        if codes_BNS.ndim != 3 or codes_BNS.shape[-1] != len(self.codes):
            raise ValueError(
                f"codes_BNS has shape {tuple(codes_BNS.shape)}: "
                f"{self.kind} expects [batch, position, {len(self.codes)}]"
            )
        if codes_BNS.is_floating_point() or codes_BNS.dtype == torch.bool:
            raise ValueError(f"codes_BNS is {codes_BNS.dtype}: {self.kind} expects integers")
        if torch.compiler.is_compiling() or not codes_BNS.numel():
            return
        least_S, most_S = (end.tolist() for end in torch.aminmax(codes_BNS.flatten(0, 1), dim=0))
        for stream, (least, most, size) in enumerate(zip(least_S, most_S, self.codes, strict=True)):
            if least < 0 or most >= size:
                raise ValueError(
                    f"codes_BNS of stream {stream} lie in [{least}, {most}]: {self.kind} has codes 0..{size - 1}"
                )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.options() if isinstance(value, Quantizer) else value


def _fresh(value: Any) -> Any:
    if isinstance(value, list):
        return [_fresh(item) for item in value]
    return value.fresh() if isinstance(value, Quantizer) else value
