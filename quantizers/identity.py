"""No quantization: the deterministic bottleneck of a plain autoencoder, as in DC-AE (https://arxiv.org/abs/2410.10733).

Continuous like the Gaussian, but without a posterior: what comes in travels, and there is nothing to pay for.
"""

from __future__ import annotations

from torch import Tensor

from quantizers.base import Quantized, Quantizer


class Identity(Quantizer):
    """Continuous bottleneck of `dim` channels that changes nothing and costs nothing."""

    kind = "identity"

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim={dim}: expected at least 1 latent channel")
        self.dim = self.in_dim = dim
        self.codes = ()

    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        return Quantized(z_BND, None, z_BND.new_zeros(()))

    def _encode(self, z_BND: Tensor) -> Tensor:
        return z_BND

    def _decode(self, codes_BNS: Tensor) -> Tensor:
        return codes_BNS.float()

    def _codes_of(self, q_BND: Tensor) -> Tensor:
        return q_BND
