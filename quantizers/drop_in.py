"""Any quantizer of codes in the place of a module that is called as `quantized, indices, loss = vq(z)`.

That is how VQ-VAE code and vector-quantize-pytorch (https://github.com/lucidrains/vector-quantize-pytorch) call theirs,
with channels first or last and any number of positional axes. Only the layout changes here.

Shape letters: B batch, N positions, S streams, D channels; `...` any positional axes, none included (H, W of a map).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from quantizers.base import Quantizer
from quantizers.inner import codes_in

_MASKED = -1


class DropInOutput(NamedTuple):
    """What `DropIn` returns: vectors laid out like the input and of its dtype, indices, and a float32 scalar.

    indices  int64 [B, ...] where a position has one code, [B, ..., S] where it has several; -1 where masked out
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor


class DropIn(nn.Module):
    """A quantizer called with [B, ..., D], or with [B, D, ...] where `channel_first`: sequences, maps, videos.

    quantizer  is run, not copied: it trains and keeps its state as ever. It is a submodule, so that keys of the
               state_dict begin with `quantizer.`; those without are `self.quantizer.state_dict()`'s

    The loss is the quantizer's own in evaluation too. Raises `ValueError` for a continuous bottleneck, and for one
    whose codes are not those of single positions (multiscale): call these themselves.
    """

    def __init__(self, quantizer: Quantizer, *, channel_first: bool = False) -> None:
        super().__init__()
        if not quantizer.codes or not quantizer.pointwise:
            raise ValueError(
                f"quantizer={quantizer.kind}: its positions have no codes of their own to be indices; "
                "call it without DropIn, with vectors [batch, position, channel]"
            )
        self.quantizer, self.channel_first = quantizer, channel_first

    def forward(self, z: Tensor, mask: Tensor | None = None) -> DropInOutput:
        """Quantize vectors [B, ..., in_dim] (channel_first: [B, in_dim, ...]) with gradients to z.

        mask  bool [B, ...], True where a position is real; the others give zero vectors and indices -1, no loss,
              no gradient and no statistics
        """
        where, dim = (1 if self.channel_first else -1), self.quantizer.in_dim
        if z.ndim < 2 or z.shape[where] != dim:
            layout = f"[batch, {dim}, ...]" if self.channel_first else f"[batch, ..., {dim}]"
            raise ValueError(
                f"z has shape {tuple(z.shape)}: channel_first={self.channel_first} and {self.quantizer.kind} "
                f"expect {layout}"
            )
        z_last = z.movedim(where, -1)
        batch, *axes = z_last.shape[:-1]
        mask_BN = None if mask is None else self._flat_mask(mask, (batch, *axes))
        # One copy here spares the several that the quantizer would make of a transposed view.
        out = self.quantizer(z_last.reshape(batch, math.prod(axes), dim).contiguous(), mask_BN)
        codes_BNS = codes_in(out)
        if mask_BN is not None:
            codes_BNS = torch.where(mask_BN[..., None], codes_BNS, _MASKED)
        streams = [] if len(self.quantizer.codes) == 1 else [len(self.quantizer.codes)]
        indices = codes_BNS.reshape(batch, *axes, *streams)
        return DropInOutput(self._laid_out(out.z_BND, [batch, *axes]).to(z.dtype), indices, out.loss)

    def vectors(self, indices: Tensor) -> Tensor:
        """Float32 vectors that indices stand for, laid out as `forward` returns them; zeros where they are -1.

        `ValueError` for indices outside of the vocabulary.
        """
        streams = len(self.quantizer.codes)
        if indices.ndim < 1 or (streams > 1 and (indices.ndim < 2 or indices.shape[-1] != streams)):
            layout = "[batch, ...]" if streams == 1 else f"[batch, ..., {streams}]"
            raise ValueError(f"indices has shape {tuple(indices.shape)}: {self.quantizer.kind} expects {layout}")
        batch, *axes = indices.shape if streams == 1 else indices.shape[:-1]
        codes_BNS = indices.reshape(batch, math.prod(axes), streams)
        masked_BN = (codes_BNS == _MASKED).all(-1)
        q_BND = self.quantizer.decode(codes_BNS.masked_fill(masked_BN[..., None], 0))
        return self._laid_out(q_BND.masked_fill(masked_BN[..., None], 0.0), [batch, *axes])

    def extra_repr(self) -> str:
        """Where the channels are."""
        return f"channel_first={self.channel_first}"

    def _flat_mask(self, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
        if mask.shape != shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}: expected torch.bool of shape {shape}, "
                "True where a position is real"
            )
        return mask.reshape(shape[0], math.prod(shape[1:]))

    def _laid_out(self, q_BND: Tensor, axes: list[int]) -> Tensor:
        q_last = q_BND.reshape(*axes, q_BND.shape[-1])
        return q_last.movedim(-1, 1) if self.channel_first else q_last
