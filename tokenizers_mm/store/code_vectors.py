"""What is asked of a tokenizer so that a store knows the vectors of its codes without it.

Shape letters: B batch, N positions, S streams, V vocabulary, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

import quantizers
from tokenizers_mm.api import Quantizer, Tokenizer, Tokens
from tokenizers_mm.traits import quantizer_of

__all__ = ["codebook_of", "rebuilt_quantizer"]

_LARGEST_CODEBOOK = 65_536


def codebook_of(tokenizer: Tokenizer, device: torch.device | str = "cpu") -> Tensor | None:
    """Vector of every code [V, D] of a single-stream tokenizer with at most 65 536 codes, else None.

    Codes are embedded in two arrangements: where a vector depends on its position there is no such table.
    """
    spec = tokenizer.spec
    if spec.streams != 1 or spec.layout in ("scales", "parts") or spec.codes[0] > _LARGEST_CODEBOOK:
        return None
    size = spec.codes[0]
    tables = []
    for shift in (0, 1):
        padded = torch.zeros(-(-(size + shift) // spec.length) * spec.length, dtype=torch.int64)
        padded[shift : size + shift] = torch.arange(size)
        tokens = Tokens(codes_BNS=padded.reshape(-1, spec.length, 1), grid=spec.grid).to(device)
        with torch.inference_mode():
            z_BND = tokenizer.embed(tokens)
        tables.append(z_BND.reshape(-1, spec.dim)[shift : size + shift].float().cpu().clone())
    return tables[0] if torch.equal(tables[0], tables[1]) else None


def rebuilt_quantizer(tokenizer: Tokenizer, device: torch.device | str = "cpu") -> Quantizer | None:
    """The tokenizer's quantizer as a store gives it back: built anew from its options and tensors; None without one.

    None as well where its vectors are not those of `embed`, so that one of somebody else's class, or one that is only
    part of the way from codes to vectors, is not mistaken for the whole.
    """
    original = quantizer_of(tokenizer)
    if original is None:
        return None
    try:
        quantizer = quantizers.build(original.options())
        quantizer.load_state_dict(original.state_dict())
    except (ValueError, RuntimeError):
        return None
    tokens, quantizer = _some_tokens(tokenizer).to(device), quantizer.to(device).eval()
    with torch.inference_mode():
        expected_BND, found_BND = tokenizer.embed(tokens).float(), quantizer.vectors(tokens.data)
    if expected_BND.shape != found_BND.shape:
        return None
    close = float((expected_BND - found_BND).abs().max()) <= 0.01 * float(expected_BND.abs().max())  # of bfloat16 too
    return quantizer if close else None


def _some_tokens(tokenizer: Tokenizer) -> Tokens:
    """One image of random codes, the same for every tokenizer of this spec."""
    spec, generator = tokenizer.spec, torch.Generator().manual_seed(0)
    streams = [torch.randint(size, (1, spec.length), generator=generator) for size in spec.codes]
    return Tokens(codes_BNS=torch.stack(streams, -1), grid=spec.grid)
