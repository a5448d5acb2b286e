"""A module of vector-quantize-pytorch (https://github.com/lucidrains/vector-quantize-pytorch) behind our contract.

It runs as it is, in [batch, position, channel], and keeps its own weights, losses and updates. What is added is the
contract: checks, float32, masks, one output type, codes of the shape of ours, and a `decode` that gives what `forward`
gave (some of its own index-to-code methods leave a step out: the affine map, the rotation, the norm).

Shape letters: B batch, N positions, S streams, D channels, H codebooks (heads), K rows.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from quantizers.adapters.part import Part
from quantizers.adapters.parts import part_of
from quantizers.adapters.peer import as_sequences
from quantizers.base import Grid, Quantized, Quantizer


class Foreign(Quantizer):
    """Quantizer that runs a module of vector-quantize-pytorch.

    module  shared, not copied: training one trains the other
    reason  why no quantizer of ours does the same

    Not compiled into one graph, not exported, and not rebuilt from options: the module is not plain data.
    """

    kind = "foreign"
    invertible = False

    def __init__(self, module: nn.Module, reason: str = "") -> None:
        super().__init__()
        self.module, self.reason = module, reason
        self.part: Part = part_of(module)
        self.in_dim, self.dim, self.codes = self.part.in_dim, self.part.dim, self.part.codes
        self.pointwise = self.part.pointwise

    def options(self) -> dict[str, Any]:
        """Raise `ValueError`: build the module and wrap it again instead."""
        raise ValueError(
            f"{type(self.module).__name__} of vector_quantize_pytorch is wrapped as it is and cannot be described by "
            f"options: save its state_dict, build the module again, and wrap it ({self.reason or 'asked for'})"
        )

    def length(self, positions: int) -> int:
        """Code positions of so many positions: one each, or those of all scales."""
        return self.part.length(positions)

    def vectors(self, codes_BNS: Tensor) -> Tensor:
        """See `Quantizer`; `ValueError` for a module of several scales, which has none of single positions."""
        self._refuse_scales()
        return super().vectors(codes_BNS)

    def code_grid(self, grid: Grid) -> Grid:
        """The same; `ValueError` for a module of several scales."""
        self._refuse_scales()
        return grid

    def input_grid(self, grid: Grid) -> Grid:
        """The same; `ValueError` for a module of several scales."""
        self._refuse_scales()
        return grid

    def fresh(self) -> Self:
        """Raise `ValueError`: how the module was built is not known."""
        raise ValueError(f"{type(self.module).__name__} of vector_quantize_pytorch: build another one and wrap that")

    def _refuse_scales(self) -> None:
        if not self.pointwise:
            name = type(self.module).__name__
            raise ValueError(f"{name} of vector_quantize_pytorch has scales: only `encode` and `decode` know them")

    def unchecked(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        """See `Quantizer`; a module of several scales masks its own output, which has other positions."""
        return super().unchecked(z_BND, mask_BN) if self.pointwise else self._forward(z_BND, mask_BN)

    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        real_BN = torch.ones(z_BND.shape[:2], dtype=torch.bool, device=z_BND.device) if mask_BN is None else mask_BN
        with as_sequences(self.module, training=self.training):
            if not bool(real_BN.any()):
                return self._nothing(z_BND)
            if not self.pointwise:
                return Quantized(*self.part.run(z_BND, mask_BN))
            # One position knows nothing of another, so that leaving the masked ones out is all a mask has to do.
            vector_BND, codes_BNS, loss = self.part.run(z_BND[real_BN][None], None)
        q_BND = z_BND.new_zeros(*z_BND.shape[:2], self.dim).index_put((real_BN,), vector_BND[0])
        all_BNS = codes_BNS.new_zeros(*z_BND.shape[:2], len(self.codes)).index_put((real_BN,), codes_BNS[0])
        return Quantized(q_BND, all_BNS, loss)

    def _nothing(self, z_BND: Tensor) -> Quantized:
        zero = (0 * z_BND).sum()
        return Quantized(z_BND.new_zeros(*z_BND.shape[:2], self.dim) + zero, self._no_codes(z_BND), zero)

    def _no_codes(self, z_BND: Tensor) -> Tensor:
        shape = (len(z_BND), self.part.length(z_BND.shape[1]), len(self.codes))
        return torch.zeros(shape, dtype=torch.int64, device=z_BND.device)

    def _encode(self, z_BND: Tensor) -> Tensor:
        if not z_BND.numel():
            return self._no_codes(z_BND)
        with as_sequences(self.module, training=False):
            return self.part.run(z_BND, None)[1]

    def _stream_vectors(self, codes_BNS: Tensor) -> Tensor:
        self._refuse_scales()
        return super()._stream_vectors(codes_BNS)

    def _decode(self, codes_BNS: Tensor) -> Tensor:
        places = self.part.places(codes_BNS.shape[1])
        if not codes_BNS.numel():
            return torch.zeros(len(codes_BNS), places, self.dim, device=codes_BNS.device)
        with as_sequences(self.module, training=False):
            return self.part.vectors(codes_BNS.long())
