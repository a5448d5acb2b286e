"""Projected quantization: Vector-quantized Image Modeling with Improved VQGAN (https://arxiv.org/abs/2110.04627).

A linear map takes vectors to the few channels of the quantizer inside, another takes its vectors back. Few channels
keep a large codebook in use; with cosine search inside, this is the quantizer of ViT-VQGAN and, one per residual level,
of DAC (https://arxiv.org/abs/2306.06546).

Shape letters: B batch, N positions, S streams, D channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantizers.base import Quantized, Quantizer
from quantizers.inner import checked_inner


class Projected(Quantizer):
    """A quantizer between two linear maps, both learned through the vectors it returns.

    inner   the quantizer inside
    in_dim  channels of the vectors outside
    bias    whether the linear maps have one
    norm    layer normalisation of the projected vectors, before they are quantized
    """

    kind = "projected"
    invertible = False

    def __init__(self, inner: Quantizer, in_dim: int, *, bias: bool = True, norm: bool = False) -> None:
        super().__init__()
        if in_dim < 1:
            raise ValueError(f"in_dim={in_dim}: expected at least 1 channel")
        self.quantizer = checked_inner(inner)
        if norm and self.quantizer.in_dim < 3:
            raise ValueError(f"norm={norm}: normalising {self.quantizer.in_dim} channels leaves nearly nothing")
        self.in_dim = self.dim = in_dim
        self.bias, self.norm = bias, norm
        self.codes = self.quantizer.codes
        self.project_in = nn.Linear(in_dim, self.quantizer.in_dim, bias=bias)
        self.norm_in = nn.LayerNorm(self.quantizer.in_dim) if norm else nn.Identity()
        self.project_out = nn.Linear(self.quantizer.dim, in_dim, bias=bias)

    @property
    def inner(self) -> Quantizer:
        """The quantizer inside."""
        return self.quantizer

    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        out = self.quantizer.unchecked(self._inside(z_BND), mask_BN)
        return replace(out, z_BND=self.project_out(out.z_BND))

    def _encode(self, z_BND: Tensor) -> Tensor:
        return self.quantizer._encode(self._inside(z_BND))

    def _decode(self, codes_BNS: Tensor) -> Tensor:
        return cast(Tensor, self.project_out(self.quantizer._decode(codes_BNS)))

    def _stream_vectors(self, codes_BNS: Tensor) -> Tensor:
        inside_BNSD = self.quantizer._stream_vectors(codes_BNS)
        out_BNSD = F.linear(inside_BNSD, self.project_out.weight)
        if not self.bias:
            return out_BNSD
        first_S1 = torch.arange(len(self.codes), device=out_BNSD.device)[:, None] == 0
        return out_BNSD + torch.where(first_S1, self.project_out.bias, 0.0)

    def _inside(self, z_BND: Tensor) -> Tensor:
        return cast(Tensor, self.norm_in(self.project_in(z_BND)))
