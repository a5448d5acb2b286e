"""Signs of numbers as codes: every channel is one bit, and a code is a row of bits.

    bit = z > 0,   q = scale where the bit is set, else -scale,   code = the bits of consecutive channels

A code has at most 62 bits, so longer rows are split into streams of equal length. Two orders are in use: most
significant bit first (vector-quantize-pytorch, Show-o) and least significant first (Open-MAGVIT2).

Shape letters: N vectors, S streams, D channels, W bits of one stream (D = S W), Y bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.kernels import native
from quantizers.kernels.dispatch import backend, operation

MOST_BITS = 62


def sign_quantize(z_ND: Tensor, *, scale: float = 1.0, streams: int = 1, msb: bool = True) -> tuple[Tensor, Tensor]:
    """Values +-scale [N, D] float32 and codes [N, streams] int64 of vectors [N, D]; zero counts as negative.

    streams  codes per vector: each holds the bits of D / streams consecutive channels, at most 62
    msb      whether the first channel of a stream is its most significant bit, or its least

    One pass over memory. Not differentiable. `ValueError` where the streams do not fit the channels.
    """
    if z_ND.ndim != 2 or not z_ND.is_floating_point():
        raise ValueError(f"z_ND is {z_ND.dtype} of shape {tuple(z_ND.shape)}: expected a float type, [N, D]")
    if not scale > 0:
        raise ValueError(f"scale={scale}: expected a positive number")
    stream_bits(z_ND.shape[1], streams)
    out: tuple[Tensor, Tensor] = _sign_quantize(z_ND.detach().float().contiguous(), float(scale), streams, msb)
    return out


def sign_vectors(codes_NS: Tensor, dim: int, *, scale: float = 1.0, msb: bool = True) -> Tensor:
    """Values +-scale [N, dim] float32 that codes [N, S] stand for: the inverse of `sign_quantize`.

    Any leading dimensions may stand for N.
    """
    width = stream_bits(dim, codes_NS.shape[-1])
    shift_W = torch.arange(width, device=codes_NS.device)
    bit_NSW = codes_NS[..., None] >> (shift_W.flip(0) if msb else shift_W) & 1
    return (bit_NSW.to(torch.float32) * 2 - 1).flatten(-2) * scale


def pack_bits(codes_NS: Tensor, dim: int) -> Tensor:
    """Codes [N, S] of dim bits together, as bytes [N, ceil(dim / 8)] uint8.

    For exchange with code that has bits; token stores pack codes of any vocabulary, in an order of their own.
    The bits of all streams follow each other, most significant first, in codes as in bytes; the last byte is filled
    with zeros. `ValueError` where the streams do not fit dim.
    """
    if codes_NS.ndim != 2 or codes_NS.dtype != torch.int64:
        raise ValueError(f"codes_NS is {codes_NS.dtype} of shape {tuple(codes_NS.shape)}: expected int64 [N, S]")
    width = stream_bits(dim, codes_NS.shape[1])
    bit_ND = torch.zeros(len(codes_NS), -(-dim // 8) * 8, dtype=torch.uint8, device=codes_NS.device)
    for i in range(width):  # one column of each stream at a time: no int64 for every bit
        bit_ND[:, i:dim:width] = codes_NS >> (width - 1 - i) & 1
    byte_NY = torch.zeros_like(bit_ND[:, ::8])
    for i in range(8):
        byte_NY |= bit_ND[:, i::8] << (7 - i)
    return byte_NY


def unpack_bits(packed_NY: Tensor, dim: int, *, streams: int = 1) -> Tensor:
    """Codes [N, streams] int64 from the bytes of `pack_bits`. `ValueError` where the number of bytes is not dim's."""
    width = stream_bits(dim, streams)
    if packed_NY.ndim != 2 or packed_NY.dtype != torch.uint8 or packed_NY.shape[1] != -(-dim // 8):
        raise ValueError(
            f"packed_NY is {packed_NY.dtype} of shape {tuple(packed_NY.shape)}: expected uint8 [N, {-(-dim // 8)}]"
        )
    codes_NS = torch.zeros(len(packed_NY), streams, dtype=torch.int64, device=packed_NY.device)
    for i in range(width):
        place_S = torch.arange(i, dim, width, device=packed_NY.device)
        codes_NS = codes_NS << 1 | packed_NY[:, place_S // 8] >> (7 - place_S % 8).to(torch.uint8) & 1
    return codes_NS


def stream_bits(dim: int, streams: int) -> int:
    """Bits of one stream; `ValueError` unless the streams divide the channels into at most 62 each."""
    if dim < 1:
        raise ValueError(f"dim={dim}: expected at least 1 channel")
    if streams < 1 or dim % streams:
        raise ValueError(f"streams={streams}: expected a divisor of the {dim} channels")
    if dim // streams > MOST_BITS:
        raise ValueError(f"streams={streams}: {dim // streams} bits do not fit a code of at most {MOST_BITS}")
    return dim // streams


def sign_quantize_reference(z_ND: Tensor, scale: float, streams: int, msb: bool) -> tuple[Tensor, Tensor]:
    """Plain PyTorch, on any device."""
    bit_ND = z_ND > 0
    plus, minus = z_ND.new_tensor(scale), z_ND.new_tensor(-scale)
    width = z_ND.shape[1] // streams
    codes_NS = torch.zeros(len(z_ND), streams, dtype=torch.int64, device=z_ND.device)
    for i in range(width):
        codes_NS = codes_NS << 1 | bit_ND[:, (i if msb else width - 1 - i) :: width]
    return torch.where(bit_ND, plus, minus), codes_NS


@operation("quantizers::sign_quantize")
def _sign_quantize(z_ND: Tensor, scale: float, streams: int, msb: bool) -> tuple[Tensor, Tensor]:
    match backend(z_ND.device):
        case "cuda":
            from quantizers.kernels.cuda.bits import sign_quantize_cuda

            return sign_quantize_cuda(z_ND, scale, streams, msb)
        case "native":
            return native.sign_quantize(z_ND, scale, streams, msb)
        case _:
            return sign_quantize_reference(z_ND, scale, streams, msb)


@_sign_quantize.register_fake
def _(z_ND: Tensor, scale: float, streams: int, msb: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(z_ND), z_ND.new_empty(z_ND.shape[0], streams, dtype=torch.int64)
