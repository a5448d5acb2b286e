"""BSQ: Image and Video Tokenization with Binary Spherical Quantization (https://arxiv.org/abs/2406.07548).

As LFQ, on the unit sphere: the vector is divided by its length and its code's values are +-1/sqrt(dim), so both lie on
the sphere and the quantization error is bounded. The code is the signs still, which no positive scale changes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from quantizers.lfq import LFQ, BitOrder

# A vector shorter than this is not stretched all the way to the sphere, so that zero has a finite gradient.
_SHORTEST = 1e-6


class BSQ(LFQ):
    """Binary spherical quantizer: one bit per channel of the unit-length vector, packed into codes.

    dim            channels, which is bits
    streams        codes per position: each holds dim / streams consecutive bits, at most 62; the sphere is that of all
    commitment     weight of mean (u - q)^2, u being the unit vector
    entropy        weight of sample entropy - diversity * codebook entropy, both in nats, means over streams; 0 saves
                   their cost
    diversity      weight of the codebook entropy relative to the sample entropy
    temperature    of the softmax of -|u - c|^2 over codes
    entropy_group  bits of a stream that the codebook entropy takes together, a divisor of dim / streams up to 20; None
                   takes the whole stream
    bit_order      "msb": the first channel is a code's most significant bit; "lsb": its least

    Losses and statistics are those of training: in evaluation the loss is zero.
    """

    kind = "bsq"

    def __init__(
        self,
        dim: int,
        *,
        streams: int = 1,
        commitment: float = 0.25,
        entropy: float = 0.1,
        diversity: float = 1.0,
        temperature: float = 0.01,
        entropy_group: int | None = None,
        bit_order: BitOrder = "msb",
    ) -> None:
        super().__init__(
            dim,
            streams=streams,
            commitment=commitment,
            entropy=entropy,
            diversity=diversity,
            temperature=temperature,
            entropy_group=entropy_group,
            bit_order=bit_order,
            scale=max(dim, 1) ** -0.5,
        )

    def _latent(self, z_BND: Tensor) -> Tensor:
        return F.normalize(z_BND, dim=-1, eps=_SHORTEST)
