"""Codes <-> packed bits: a code of vocabulary V takes ceil(log2 V) bits, an image is one row of whole bytes.

Within a row the bits follow position by position, stream by stream, least significant first; the last byte is filled up
with zeros. Streams of 8 or 16 bits are therefore plain little-endian uint8 or uint16.

Shape letters: B batch, N positions, S streams, T bytes of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["pack", "row_bytes", "unpack"]


def row_bytes(length: int, code_bits: Sequence[int]) -> int:
    """Bytes T of one packed image of `length` positions."""
    if not code_bits or not all(1 <= bits <= 63 for bits in code_bits):
        raise ValueError(f"code_bits={tuple(code_bits)}: expected 1 to 63 bits for each of at least one stream")
    return -(-length * sum(code_bits) // 8)


def pack(codes_BNS: Tensor, code_bits: Sequence[int]) -> Tensor:
    """Pack int64 codes [B, N, S] into uint8 rows [B, T]; `ValueError` on a code that does not fit its bits."""
    if codes_BNS.ndim != 3 or codes_BNS.dtype != torch.int64 or codes_BNS.shape[2] != len(code_bits):
        raise ValueError(
            f"codes are {codes_BNS.dtype} {tuple(codes_BNS.shape)}: expected int64 [B, N, {len(code_bits)}]"
        )
    batch, length, _ = codes_BNS.shape
    row_bytes(length, code_bits)
    streams = []
    for stream, bits in enumerate(code_bits):
        codes = codes_BNS[..., stream].cpu().contiguous().numpy().astype("<i8")
        if codes.size and not 0 <= codes.min() <= codes.max() < 1 << bits:
            raise ValueError(
                f"codes of stream {stream} lie in [{codes.min()}, {codes.max()}]: {bits} bits hold no such"
            )
        octets = codes.view(np.uint8).reshape(batch, length, 8)
        streams.append(np.unpackbits(octets, axis=-1, count=bits, bitorder="little"))
    flat = np.concatenate(streams, axis=-1).reshape(batch, length * sum(code_bits))
    return torch.from_numpy(np.packbits(flat, axis=-1, bitorder="little"))


def unpack(rows_BT: Tensor, length: int, code_bits: Sequence[int]) -> Tensor:
    """Exact inverse of `pack`: uint8 rows [B, T] of `length` positions to int64 codes [B, N, S]."""
    if rows_BT.dtype != torch.uint8 or rows_BT.ndim != 2 or rows_BT.shape[1] != row_bytes(length, code_bits):
        raise ValueError(
            f"rows are {rows_BT.dtype} {tuple(rows_BT.shape)}: {length} positions of {sum(code_bits)} bits "
            f"take uint8 [B, {row_bytes(length, code_bits)}]"
        )
    batch, width = rows_BT.shape[0], sum(code_bits)
    bits_BNW = np.unpackbits(rows_BT.contiguous().numpy(), axis=-1, count=length * width, bitorder="little")
    bits_BNW = bits_BNW.reshape(batch, length, width)
    codes = np.empty((batch, length, len(code_bits)), np.int64)
    start = 0
    for stream, bits in enumerate(code_bits):
        packed = np.packbits(bits_BNW[..., start : start + bits], axis=-1, bitorder="little")
        octets = np.zeros((batch, length, 8), np.uint8)
        octets[..., : packed.shape[-1]] = packed
        codes[..., stream] = octets.view("<i8")[..., 0]
        start += bits
    return torch.from_numpy(codes)
