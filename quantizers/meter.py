"""How codes are used: bits, usage and perplexity, counted batch by batch.

A vocabulary of V codes offers log2 V bits per code. The entropy of the code frequencies is what an ideal entropy coder
that knows them, and nothing of the context, would pay; 2 to that entropy is the perplexity.

Shape letters: B batch, N positions, S streams.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from quantizers.distributed import processes


class CodeMeter:
    """Counts of every code of every stream; memory grows with the codes seen, not with the vocabulary.

    codes  vocabulary of each stream, as `Quantizer.codes`

    >>> meter = CodeMeter(quantizer.codes)
    >>> meter.update(quantizer.encode(z))
    >>> meter.usage, meter.perplexity, meter.entropy
    """

    def __init__(self, codes: tuple[int, ...]) -> None:
        if not codes:
            raise ValueError("codes=(): a continuous bottleneck has no codes to count")
        self.codes = codes
        self.positions = 0
        self._seen = [(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)) for _ in codes]

    def update(self, codes_BNS: Tensor, mask_BN: Tensor | None = None) -> None:
        """Add a batch of codes, of the positions that the mask calls real."""
        if codes_BNS.ndim != 3 or codes_BNS.shape[-1] != len(self.codes):
            raise ValueError(
                f"codes_BNS has shape {tuple(codes_BNS.shape)}: expected [batch, position, {len(self.codes)}]"
            )
        real_MS = codes_BNS.flatten(0, 1) if mask_BN is None else codes_BNS[mask_BN]
        self.positions += len(real_MS)
        for stream, codes_M in enumerate(real_MS.cpu().unbind(-1)):
            self._add(stream, *torch.unique(codes_M, return_counts=True))

    def gather(self) -> None:
        """Add up what all processes have counted; afterwards each of them holds the whole."""
        if processes() == 1:
            return
        every: list[tuple[int, list[tuple[Tensor, Tensor]]]] = [(0, [])] * processes()
        dist.all_gather_object(every, (self.positions, self._seen))
        self.positions = 0
        self._seen = [(values[:0], counts[:0]) for values, counts in self._seen]
        for positions, seen in every:
            self.positions += positions
            for stream, (values, counts) in enumerate(seen):
                self._add(stream, values, counts)

    @property
    def used(self) -> tuple[int, ...]:
        """Codes of each stream that occurred at least once."""
        return tuple(len(values) for values, _ in self._seen)

    @property
    def usage(self) -> tuple[float, ...]:
        """Share of each vocabulary that occurred at least once."""
        return tuple(used / size for used, size in zip(self.used, self.codes, strict=True))

    @property
    def entropy(self) -> tuple[float, ...]:
        """Bits of each stream's code frequencies; `ValueError` before the first code."""
        if not self.positions:
            raise ValueError("no codes were counted: there are no statistics of nothing")
        return tuple(entropy_bits(counts) for _, counts in self._seen)

    @property
    def perplexity(self) -> tuple[float, ...]:
        """2 to the entropy: how many equally likely codes would say as much."""
        return tuple(2.0**bits for bits in self.entropy)

    def _add(self, stream: int, values: Tensor, counts: Tensor) -> None:
        old_values, old_counts = self._seen[stream]
        merged, where = torch.unique(torch.cat([old_values, values]), return_inverse=True)
        total = torch.zeros_like(merged).index_add_(0, where, torch.cat([old_counts, counts]))
        self._seen[stream] = (merged, total)


def entropy_bits(counts: Tensor) -> float:
    """Entropy in bits of the distribution that counts [K] are proportional to."""
    share = counts.double() / counts.sum()
    return float(-torch.special.xlogy(share, share).sum().clamp(max=0) / math.log(2))
