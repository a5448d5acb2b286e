"""SimVQ: Addressing Representation Collapse in Vector Quantized Models with One Linear Layer
(https://arxiv.org/abs/2411.02038).

The codebook is a frozen random table times a learned matrix, E = F W^T. A step of W moves every row at once, so none is
left behind. A vector becomes the index of the nearest row of E; the loss is |q - sg(z)|^2, by which W follows the
vectors, plus beta |z - sg(q)|^2. Defaults are those of vector-quantize-pytorch's SimVQ.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantizers.base import Quantized, Quantizer
from quantizers.checks import check_codebook, check_not_negative
from quantizers.kernels import nearest
from quantizers.means import mean_square
from quantizers.straight_through import Estimator, rotation, straight_through

_ESTIMATORS = {"rotation": rotation, "straight_through": straight_through}


class SimVQ(Quantizer):
    """Euclidean vector quantizer with one code per position, whose codebook is a linear map of a frozen one.

    size        rows of the codebook, K
    dim         channels of a row
    commitment  weight beta of |z - sg(q)|^2 in the loss
    codebook    weight of |q - sg(z)|^2 in the loss
    estimator   of the gradient that the decoder gets back through the quantizer: "rotation" or "straight_through"
    frozen_dim  channels of the frozen table; None takes `dim`
    """

    kind = "simvq"

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        commitment: float = 0.25,
        codebook: float = 1.0,
        estimator: Estimator = "rotation",
        frozen_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_codebook(size, dim)
        if frozen_dim is not None and frozen_dim < 1:
            raise ValueError(f"frozen_dim={frozen_dim}: expected at least 1 channel, or None for dim={dim}")
        check_not_negative(commitment=commitment, codebook=codebook)
        if estimator not in _ESTIMATORS:
            raise ValueError(f"estimator={estimator!r}: expected one of {', '.join(_ESTIMATORS)}")
        self.size, self.commitment, self.codebook = size, commitment, codebook
        self.estimator, self.frozen_dim = estimator, frozen_dim
        self.in_dim = self.dim = dim
        self.codes = (size,)
        width = frozen_dim or dim
        self.register_buffer("frozen_KD", torch.randn(size, width) * width**-0.5)
        self.transform = nn.Linear(width, dim, bias=False)

    frozen_KD: Tensor

    def rows(self) -> Tensor:
        """Vectors [K, D] that the codes stand for, differentiable in the matrix."""
        return F.linear(self.frozen_KD, self.transform.weight)

    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        codes_BNS = self._encode(z_BND)
        q_BND = self._decode(codes_BNS)
        follow = mean_square(q_BND, z_BND.detach(), mask_BN)
        commit = mean_square(z_BND, q_BND.detach(), mask_BN)
        loss = self.codebook * follow + self.commitment * commit
        return Quantized(_ESTIMATORS[self.estimator](z_BND, q_BND), codes_BNS, loss, {"error": follow.detach()})

    @torch.no_grad()
    def _encode(self, z_BND: Tensor) -> Tensor:
        return nearest(z_BND.reshape(-1, self.dim), self.rows()).view(*z_BND.shape[:2], 1)

    def _decode(self, codes_BNS: Tensor) -> Tensor:
        # Chosen rows only: the matrix gets the same gradient as through the whole table, without K x D of it.
        return F.linear(F.embedding(codes_BNS.squeeze(-1), self.frozen_KD), self.transform.weight)
