"""Code usage, perplexity and marginal entropy of codes; KL of Gaussian latents: how much tokens say.

A vocabulary of V codes offers log2 V bits per token; the marginal entropy is what the code frequencies leave of them,
the rate of an ideal entropy coder that knows the frequencies and nothing of the context.

Shape letters: B batch, N positions, S streams, D channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from quantizers.meter import CodeMeter, entropy_bits
from tokenizers_mm.api import Tokens, TokenSpec

__all__ = ["CodeStatistics", "CodeUsage", "entropy_bits", "kl_bits"]


@dataclass(frozen=True, kw_only=True)
class CodeUsage:
    """What the codes of `tokens` positions in `images` images look like; tuples have one entry a stream.

    used     codes that occurred at least once
    entropy  bits of the code frequencies (plug-in estimate: never above log2 of the number of tokens)
    """

    spec: TokenSpec
    images: int
    tokens: int
    used: tuple[int, ...]
    entropy: tuple[float, ...]

    @property
    def usage(self) -> tuple[float, ...]:
        """Share of each vocabulary that was ever used."""
        return tuple(used / size for used, size in zip(self.used, self.spec.codes, strict=True))

    @property
    def perplexity(self) -> tuple[float, ...]:
        """2 to the entropy: how many equally likely codes would say as much."""
        return tuple(2.0**bits for bits in self.entropy)

    @property
    def bits_per_token(self) -> float:
        """Marginal entropy of one position, all streams together (streams taken as independent)."""
        return sum(self.entropy)

    @property
    def bits_per_pixel(self) -> float:
        """Marginal entropy over the pixels that the positions stand for."""
        return self.bits_per_token * self.spec.length / math.prod(self.spec.image_size)

    @property
    def note(self) -> str:
        """Warns where there were fewer tokens than codes: then both figures are bounded by the sample."""
        largest = max(self.spec.codes)
        if self.tokens >= largest:
            return ""
        return (
            f"{self.tokens} tokens for {largest} codes: usage cannot exceed {self.tokens / largest:.1%}, "
            f"entropy log2({self.tokens}) = {math.log2(self.tokens):.2f} bits"
        )


class CodeStatistics:
    """Counts codes batch by batch; memory grows with the codes seen, not with the vocabulary."""

    def __init__(self, spec: TokenSpec) -> None:
        if not spec.discrete:
            raise ValueError(
                "the token spec is continuous: code statistics need codes; see kl_bits for Gaussian latents"
            )
        self.spec, self.images = spec, 0
        self._meter = CodeMeter(spec.codes)

    def update(self, tokens: Tokens) -> None:
        """Add a batch of codes; `ValueError` where they are not tokens of the spec."""
        codes_BNS = tokens.check(self.spec).data
        self.images += len(codes_BNS)
        self._meter.update(codes_BNS)

    def result(self) -> CodeUsage:
        """Statistics of everything added so far; `ValueError` before the first batch."""
        if not self.images:
            raise ValueError("no tokens were added: there are no statistics of nothing")
        return CodeUsage(
            spec=self.spec,
            images=self.images,
            tokens=self._meter.positions,
            used=self._meter.used,
            entropy=self._meter.entropy,
        )


def kl_bits(mean_BND: Tensor, logvar_BND: Tensor) -> Tensor:
    """KL(N(mean, var) || N(0, 1)) in bits per image [B]: what the latents cost under a standard-normal prior."""
    mean, logvar = mean_BND.double(), logvar_BND.double()
    nats = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
    return nats.flatten(1).sum(1) / math.log(2)
