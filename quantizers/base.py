"""The quantizer contract: vectors <-> codes, one layout, one output type, one set of verbs.

    forward(z)        training: straight-through vectors, codes, auxiliary loss, statistics
    encode(z)         what travels: codes [B, N, S] (or, for a continuous bottleneck, latents [B, N, D])
    decode(codes)     the vectors the codes stand for
    codes_of(q)       exact inverse of decode

Shape letters: B batch, N positions, S streams (codes per position), D channels. Layout is always [B, N, channel].
Arithmetic is float32 whatever the autocast: low-precision distances lose codes.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Quantized:
    """Output of every quantizer's forward.

    z_BND      vectors for the decoder; gradients flow straight through to the input
    codes_BNS  int64 codes, None for a continuous bottleneck
    loss       scalar auxiliary loss in float32 (commitment, KL, ...), zero where there is none
    stats      detached scalars worth logging
    """

    z_BND: Tensor
    codes_BNS: Tensor | None
    loss: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)


class Quantizer(nn.Module, ABC):
    """Base of all quantizers: argument checks and the float32 guarantee.

    Every constructor argument is kept as an attribute of the same name, so `options()` can rebuild the instance.

    in_dim  channels of the vectors it receives; dim  channels of those it returns
    codes   vocabulary of each stream; empty for a continuous bottleneck (then `encode` gives latents)
    """

    kind: ClassVar[str]
    in_dim: int
    dim: int
    codes: tuple[int, ...]

    def options(self) -> dict[str, Any]:
        """Constructor arguments plus `kind`: JSON-able, and enough to build the same quantizer again."""
        names = list(inspect.signature(type(self)).parameters)
        values = {name: getattr(self, name) for name in names}
        return {"kind": self.kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def forward(self, z_BND: Tensor) -> Quantized:
        """Quantize with straight-through gradients."""
        self._check_vectors(z_BND, self.in_dim)
        with torch.autocast(z_BND.device.type, enabled=False):
            return self._forward(z_BND.float())

    @torch.no_grad()
    def encode(self, z_BND: Tensor) -> Tensor:
        """Codes [B, N, S] int64 of vectors [B, N, in_dim]; a continuous bottleneck returns latents [B, N, dim]."""
        self._check_vectors(z_BND, self.in_dim)
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

    @torch.no_grad()
    def codes_of(self, q_BND: Tensor) -> Tensor:
        """Codes of vectors that `decode` returned: its exact inverse."""
        self._check_vectors(q_BND, self.dim)
        with torch.autocast(q_BND.device.type, enabled=False):
            return self._codes_of(q_BND.float())

    @abstractmethod
    def _forward(self, z_BND: Tensor) -> Quantized: ...

    @abstractmethod
    def _encode(self, z_BND: Tensor) -> Tensor: ...

    @abstractmethod
    def _decode(self, codes_BNS: Tensor) -> Tensor: ...

    @abstractmethod
    def _codes_of(self, q_BND: Tensor) -> Tensor: ...

    def _check_vectors(self, z_BND: Tensor, dim: int) -> None:
        if z_BND.ndim != 3 or z_BND.shape[-1] != dim:
            raise ValueError(f"z_BND has shape {tuple(z_BND.shape)}: {self.kind} expects [batch, position, {dim}]")
        if not z_BND.is_floating_point():
            raise ValueError(f"z_BND is {z_BND.dtype}: {self.kind} expects a float type")

    def _check_codes(self, codes_BNS: Tensor) -> None:
        if codes_BNS.ndim != 3 or codes_BNS.shape[-1] != len(self.codes):
            raise ValueError(
                f"codes_BNS has shape {tuple(codes_BNS.shape)}: "
                f"{self.kind} expects [batch, position, {len(self.codes)}]"
            )
        if codes_BNS.is_floating_point() or codes_BNS.dtype == torch.bool:
            raise ValueError(f"codes_BNS is {codes_BNS.dtype}: {self.kind} expects integers")
        for stream, size in enumerate(self.codes):
            codes = codes_BNS[..., stream]
            if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) < size):
                raise ValueError(
                    f"codes_BNS of stream {stream} lie in [{int(codes.min())}, {int(codes.max())}]: "
                    f"{self.kind} has codes 0..{size - 1}"
                )
