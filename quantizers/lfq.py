"""LFQ: Language Model Beats Diffusion, Tokenizer is Key to Visual Generation (https://arxiv.org/abs/2310.05737).

Lookup-free: the code of a vector is the signs of its channels, its quantized value +-scale in each. The loss has two
entropies of softmax_c(-|z - c|^2 / temperature) over all 2^d codes: that of a sample, wanted low (certain), and that of
the batch's mean, wanted high (every code used). A commitment term pulls z to its code.

The softmax factorises over bits, p(bit i set) = sigmoid(4 scale z_i / temperature), so both are exact without a table
of codes (see `quantizers.kernels.entropy`). This is also the convention of vector-quantize-pytorch, whose inverse
temperature 100 is 0.01 here; its values differ a little, as it cuts logarithms off at 1e-5.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from quantizers.base import Quantized, Quantizer
from quantizers.checks import check_not_negative, check_positive
from quantizers.kernels import bit_entropy, sign_quantize, sign_vectors
from quantizers.kernels.bits import stream_bits
from quantizers.kernels.entropy import group_bits
from quantizers.means import mean_square
from quantizers.straight_through import straight_through

BitOrder = Literal["msb", "lsb"]


class LFQ(Quantizer):
    """Lookup-free quantizer: one bit per channel, packed into codes.

    dim            channels, which is bits
    streams        codes per position: each holds dim / streams consecutive bits, at most 62
    commitment     weight of mean (z - q)^2
    entropy        weight of sample entropy - diversity * codebook entropy, both in nats, means over streams; 0 saves
                   their cost
    diversity      weight of the codebook entropy relative to the sample entropy
    temperature    of the softmax over codes
    entropy_group  bits of a stream that the codebook entropy takes together, a divisor of dim / streams up to 20; None
                   takes the whole stream. Groups count as independent, as in https://arxiv.org/abs/2406.07548
    bit_order      "msb": the first channel is a code's most significant bit (Show-o); "lsb": its least (Open-MAGVIT2)
    scale          of the quantized values

    Losses and statistics are those of training: in evaluation the loss is zero.
    """

    kind = "lfq"

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
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        width = stream_bits(dim, streams)
        check_not_negative(commitment=commitment, entropy=entropy, diversity=diversity)
        check_positive(temperature=temperature, scale=scale)
        if bit_order not in ("msb", "lsb"):
            raise ValueError(f"bit_order={bit_order!r}: expected msb or lsb")
        if entropy or entropy_group is not None:
            group_bits(width, entropy_group, "entropy_group")
        self.streams, self.commitment, self.entropy, self.diversity = streams, commitment, entropy, diversity
        self.temperature, self.entropy_group, self.bit_order, self.scale = temperature, entropy_group, bit_order, scale
        self.in_dim = self.dim = dim
        self.codes = (2**width,) * streams

    def flip_bits(self, codes_BNS: Tensor, flip_BND: Tensor) -> Tensor:
        """Codes [B, N, S] whose vectors have the other sign where `flip_BND` [B, N, dim] is True."""
        self._check_codes(codes_BNS)
        shape = (*codes_BNS.shape[:2], self.dim)
        if flip_BND.dtype != torch.bool or flip_BND.shape != shape:
            raise ValueError(f"flip_BND is {flip_BND.dtype} of shape {tuple(flip_BND.shape)}: expected bool of {shape}")
        return codes_BNS ^ self._signs(flip_BND.float() - 0.5)[1]

    def _latent(self, z_BND: Tensor) -> Tensor:
        """Vectors to which codes are near; their signs are those of z."""
        return z_BND

    def _signs(self, z_BND: Tensor) -> tuple[Tensor, Tensor]:
        flat_ND = z_BND.reshape(-1, self.dim)
        msb = self.bit_order == "msb"
        q_ND, codes_NS = sign_quantize(flat_ND, scale=self.scale, streams=self.streams, msb=msb)
        return q_ND.view_as(z_BND), codes_NS.view(*z_BND.shape[:2], self.streams)

    def _forward(self, z_BND: Tensor, mask_BN: Tensor | None) -> Quantized:
        q_BND, codes_BNS = self._signs(z_BND)
        if not (self.training or (torch.is_grad_enabled() and z_BND.requires_grad)):
            return Quantized(q_BND, codes_BNS, z_BND.new_zeros(()))
        latent_BND = self._latent(z_BND)
        out_BND = straight_through(latent_BND, q_BND)
        if not self.training:
            return Quantized(out_BND, codes_BNS, z_BND.new_zeros(()))
        loss = self.commitment * mean_square(latent_BND, q_BND, mask_BN)
        if not self.entropy:
            return Quantized(out_BND, codes_BNS, loss)
        sample, codebook = self._entropies(latent_BND, mask_BN)
        loss = loss + self.entropy * (sample - self.diversity * codebook)
        stats = {"sample_entropy": sample.detach(), "codebook_entropy": codebook.detach()}
        return Quantized(out_BND, codes_BNS, loss, stats)

    def _entropies(self, latent_BND: Tensor, mask_BN: Tensor | None) -> tuple[Tensor, Tensor]:
        logits_ND = latent_BND.reshape(-1, self.dim) * (4 * self.scale / self.temperature)
        weight_N = None if mask_BN is None else mask_BN.reshape(-1)
        group = self.entropy_group or self.dim // self.streams
        sample, codebook = bit_entropy(logits_ND, group=group, weight_N=weight_N)
        return sample / self.streams, codebook / self.streams

    def _encode(self, z_BND: Tensor) -> Tensor:
        return self._signs(z_BND)[1]

    def _decode(self, codes_BNS: Tensor) -> Tensor:
        return sign_vectors(codes_BNS, self.dim, scale=self.scale, msb=self.bit_order == "msb")

    def _stream_vectors(self, codes_BNS: Tensor) -> Tensor:
        stream_D = torch.arange(self.dim, device=codes_BNS.device) // (self.dim // self.streams)
        own_SD = stream_D == torch.arange(self.streams, device=codes_BNS.device)[:, None]
        return torch.where(own_SD, self._decode(codes_BNS)[..., None, :], 0.0)
