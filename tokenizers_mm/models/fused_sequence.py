"""Tokens of two tokenizers one after the other: semantic positions, then perceptual ones, codes in one vocabulary.

Shape letters: B batch, N positions, S streams, D channels of a position's vector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_mm.api import Tokens, TokenSpec

__all__ = ["in_sequence", "out_of_sequence", "widened"]


def in_sequence(halves: tuple[Tokens, Tokens], specs: tuple[TokenSpec, TokenSpec], spec: TokenSpec) -> Tokens:
    """Tokens of `spec` from semantic and perceptual ones of `specs`; `ValueError` for other grids than theirs."""
    for name, tokens, own in zip(("semantic", "perceptual"), halves, specs, strict=True):
        if tokens.grid != own.grid:
            raise ValueError(f"{name} grid {tokens.grid}: this tokenizer takes images of {own.grid} positions only")
    first, second = (tokens.data for tokens in halves)
    if not spec.discrete:
        return Tokens(latents_BND=torch.cat([widened(first, spec.dim), widened(second, spec.dim)], 1), grid=spec.grid)
    return Tokens(codes_BNS=torch.cat([first, second + _offset(specs, second)], 1), grid=spec.grid)


def out_of_sequence(tokens: Tokens, specs: tuple[TokenSpec, TokenSpec], spec: TokenSpec) -> tuple[Tokens, Tokens]:
    """The inverse of `in_sequence`; `ValueError` where a position holds a code of the other half."""
    if tokens.grid != spec.grid:
        raise ValueError(f"grid={tokens.grid}: this tokenizer takes {spec.grid} only, both halves complete")
    semantic, perceptual = specs
    first, second = torch.split(tokens.data, [semantic.length, perceptual.length], 1)
    if not spec.discrete:
        first, second = first[..., : semantic.dim], second[..., : perceptual.dim]
        return Tokens(latents_BND=first, grid=semantic.grid), Tokens(latents_BND=second, grid=perceptual.grid)
    offset_S = _offset(specs, tokens.data)
    for name, wrong_BNS in (("semantic", first >= offset_S), ("perceptual", second < offset_S)):
        if bool(wrong_BNS.any()):
            raise ValueError(
                f"{int(wrong_BNS.sum())} {name} positions hold codes of the other half: semantic codes are "
                f"0..{int(offset_S.min()) - 1}, perceptual ones follow; restrict what is sampled to each half's own"
            )
    return Tokens(codes_BNS=first, grid=semantic.grid), Tokens(codes_BNS=second - offset_S, grid=perceptual.grid)


def widened(part_BND: Tensor, dim: int) -> Tensor:
    """Zeros behind the channels, up to `dim` of them."""
    return F.pad(part_BND, (0, dim - part_BND.shape[2]))


def _offset(specs: tuple[TokenSpec, TokenSpec], data: Tensor) -> Tensor:
    """First perceptual code of every stream [S]."""
    return torch.tensor(specs[0].codes, device=data.device)
