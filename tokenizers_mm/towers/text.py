"""Text encoders: captions -> one vector each, trained from scratch or taken from open_clip.

Bojanowski et al., "Enriching Word Vectors with Subword Information", arXiv 1607.04606: a word is the mean of vectors of
its character n-grams and of itself, looked up by hash. There is no vocabulary to fit, and a word never seen in training
shares n-grams with words that were.

Shape letters: B batch, W words, P n-grams of all words, E width, D channels of the result.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Tag
from torch import Tensor, nn

from tokenizers_mm.blocks import encoder_layer
from tokenizers_mm.towers.captions import checked_captions
from tokenizers_mm.towers.clip_text import OpenClipText, OpenClipTextConfig

__all__ = ["NGramTextConfig", "NGramTextEncoder", "TextConfig", "build_text", "ngrams_of"]

_NGRAMS = (3, 4)  # characters of an n-gram
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class NGramTextConfig:
    """A small transformer over bags of character n-grams, one a word, trained from scratch.

    width, depth, heads  of the transformer; without layers (depth 0) words are averaged as they are
    words                of a caption that are read; what comes after is not
    buckets              rows of the table of n-grams: those whose hashes agree share a vector
    """

    kind: Literal["words"] = "words"
    width: int = 128
    depth: int = 2
    heads: int = 4
    words: int = 32
    buckets: int = 8192

    def __post_init__(self) -> None:
        """Refuse sizes below 1, a depth below 0 and widths that the heads cannot share."""
        for name in ("width", "depth", "heads", "words", "buckets"):
            least = 0 if name == "depth" else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        if self.width % self.heads:
            raise ValueError(f"width={self.width}: not a multiple of heads={self.heads}")


class NGramTextEncoder(nn.Module):
    """Captions to vectors [B, dim]: words by their n-grams, a transformer over them, the mean of its outputs."""

    def __init__(self, config: NGramTextConfig, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.pieces = nn.EmbeddingBag(config.buckets, config.width, mode="mean")
        self.positions_WE = nn.Parameter(torch.empty(config.words, config.width))
        nn.init.normal_(self.pieces.weight, std=0.1)  # the mean of a word's ten or so n-grams is three times smaller
        nn.init.normal_(self.positions_WE, std=0.02)
        layers = (encoder_layer(config.width, config.heads) for _ in range(config.depth))
        self.layers, self.norm = nn.ModuleList(layers), nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, dim)

    def forward(self, captions: Sequence[str]) -> Tensor:
        """Vectors [B, dim], not of unit length; `ValueError` naming a caption that is empty or no text."""
        words = [words_of(caption)[: self.config.words] for caption in checked_captions(captions)]
        h_BWE, real_BW = self._embedded(words)
        for layer in self.layers:
            h_BWE = layer(h_BWE, src_key_padding_mask=~real_BW)
        weight_BW1 = real_BW[..., None].to(h_BWE.dtype)
        pooled_BE = (self.norm(h_BWE) * weight_BW1).sum(1) / weight_BW1.sum(1)
        projected_BD: Tensor = self.projection(pooled_BE)
        return projected_BD

    def _embedded(self, words: list[list[str]]) -> tuple[Tensor, Tensor]:
        """Word vectors with positions [B, W, E], zero past a caption's end, and the mask [B, W] of words."""
        device = self.positions_WE.device
        longest = max(map(len, words))
        real_BW = torch.tensor([[i < len(row) for i in range(longest)] for row in words], device=device)
        rows = [ngrams_of(word, self.config.buckets) for row in words for word in row]
        offsets = torch.tensor([0, *map(len, rows[:-1])], device=device).cumsum(0)
        ids_P = torch.tensor([ngram for row in rows for ngram in row], device=device)
        flat = self.pieces(ids_P, offsets)
        h_BWE = flat.new_zeros(*real_BW.shape, self.config.width)
        h_BWE = h_BWE.masked_scatter(real_BW[..., None], flat)
        return h_BWE + self.positions_WE[:longest] * real_BW[..., None], real_BW


def words_of(caption: str) -> list[str]:
    """Words and single punctuation marks in lower case; letters that only look different are made equal (NFKC)."""
    return _WORD.findall(unicodedata.normalize("NFKC", caption).casefold())


@lru_cache(maxsize=65_536)
def ngrams_of(word: str, buckets: int) -> tuple[int, ...]:
    """Rows of the table for a word: its n-grams, ends marked, and the whole word; the same in every process."""
    marked = f"<{word}>"
    ngrams = {marked[i : i + n] for n in _NGRAMS for i in range(len(marked) - n + 1)} | {marked}
    return tuple(sorted(zlib.crc32(ngram.encode()) % buckets for ngram in ngrams))


def _kind(config: Any) -> Any:
    return config.get("kind", "words") if isinstance(config, Mapping) else getattr(config, "kind", None)


TextConfig = Annotated[
    Annotated[NGramTextConfig, Tag("words")] | Annotated[OpenClipTextConfig, Tag("open_clip")], Discriminator(_kind)
]


def build_text(
    config: TextConfig, dim: int, *, weights: Path | None = None, random_init: bool = False
) -> NGramTextEncoder | OpenClipText:
    """Build a text encoder that gives vectors of `dim` channels: a module called with a list of captions.

    weights      file with the weights of the open_clip model, in place of the hub
    random_init  random weights for open_clip: for tests, and for loading a state dict into it

    Raises `ValueError` where the weights cannot be had, or are given to an encoder that is trained from scratch.
    """
    if dim < 1:
        raise ValueError(f"dim={dim}: expected at least 1")
    if isinstance(config, OpenClipTextConfig):
        return OpenClipText(config, dim, weights=weights, random_init=random_init)
    if weights is not None:
        raise ValueError(f"weights={weights}: text encoder {config.kind!r} is trained from scratch; drop the argument")
    return NGramTextEncoder(config, dim)
