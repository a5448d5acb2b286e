"""What can be asked of any tokenizer: pixels per position, which images it takes, where it computes.

An object that satisfies the `Tokenizer` protocol needs nothing beside it. It may have more, and then these say:

    downsampling     int: sides of images are multiples of this many pixels
    takes_one_size   bool: images have to be of the spec's size, although its positions are a raster
    for_images(size) the same tokenizer for images of another (height, width), where it resizes whatever it is given
    fingerprint      a text, or a method that returns one: changes whenever the same image would get other tokens
                     (`saving.fingerprint_of` asks for it)
    quantizer        Quantizer whose `vectors` of the codes are what `embed` gives, or None
    to(device)       moves it, and returns it or nothing;  eval()  leaves training mode
"""

from __future__ import annotations

import math
from typing import Any, TypeVar, cast

import torch

from tokenizers_mm.api import Quantizer, Tokenizer, TokenSpec

__all__ = [
    "check_tokenizer",
    "downsampling_of",
    "for_images",
    "on_device",
    "only_side",
    "quantizer_of",
    "takes_one_size",
]

AnyTokenizer = TypeVar("AnyTokenizer", bound=Tokenizer)


def check_tokenizer(value: object, name: str) -> Tokenizer:
    """The value itself; `ValueError` naming what it lacks unless it has the members of the `Tokenizer` protocol."""
    if isinstance(value, type):
        raise ValueError(f"{name} is the class {value.__name__} itself: give an object of it")
    missing = [member for member in ("spec", "encode", "embed", "decode") if not hasattr(value, member)]
    if missing or not isinstance(value, Tokenizer):
        raise ValueError(
            f"{name} is a {type(value).__name__} without {', '.join(missing)}: a tokenizer has spec, encode, embed and "
            "decode (tokenizers_mm/api.py)"
        )
    if not isinstance(value.spec, TokenSpec):
        raise ValueError(f"{name}: its spec is a {type(value.spec).__name__}, expected a TokenSpec")
    return value


def downsampling_of(tokenizer: Tokenizer) -> int:
    """Pixels that both sides of an image are multiples of: its own `downsampling`, or what its spec says.

    1 where positions belong to no place, or are no whole number of pixels.
    """
    known = getattr(tokenizer, "downsampling", None)
    if known is not None:
        return int(known)
    spec = tokenizer.spec
    if spec.layout != "raster":
        return 1
    steps = [pixels / cells for pixels, cells in zip(spec.image_size, _raster(tokenizer), strict=True)]
    return math.lcm(*map(int, steps)) if all(step.is_integer() for step in steps) else 1


def takes_one_size(tokenizer: Tokenizer) -> bool:
    """Whether images have to be of the spec's size; a raster takes others unless its `takes_one_size` denies it."""
    return tokenizer.spec.layout != "raster" or bool(getattr(tokenizer, "takes_one_size", False))


def only_side(tokenizer: Tokenizer) -> int | None:
    """Side in pixels of the square images that a tokenizer takes, where it takes no others."""
    height, width = tokenizer.spec.image_size
    return height if takes_one_size(tokenizer) and height == width else None


def for_images(tokenizer: Tokenizer, image_size: tuple[int, int]) -> Tokenizer:
    """The tokenizer taken for images of this size where it resizes what it is given; else the tokenizer as it is."""
    resized: Any = getattr(tokenizer, "for_images", None)
    return tokenizer if resized is None else cast(Tokenizer, resized(image_size))


def quantizer_of(tokenizer: Tokenizer) -> Quantizer | None:
    """The tokenizer's `quantizer` where it is one of ours, with the codes and the vectors of the spec; else None."""
    quantizer, spec = getattr(tokenizer, "quantizer", None), tokenizer.spec
    if not isinstance(quantizer, Quantizer) or not spec.discrete:
        return None
    return quantizer if (quantizer.codes, quantizer.dim) == (spec.codes, spec.dim) else None


def on_device(tokenizer: AnyTokenizer, device: torch.device | str) -> AnyTokenizer:
    """The tokenizer, moved to a device and out of training mode, as far as it has `to` and `eval`.

    Raises `ValueError` where it cannot be moved and the device is not the CPU.
    """
    moves: Any = getattr(tokenizer, "to", None)
    if moves is not None:
        moved = moves(torch.device(device))
        tokenizer = tokenizer if moved is None else moved
    elif torch.device(device).type != "cpu":
        raise ValueError(
            f"device={str(device)!r}: {type(tokenizer).__name__} has no `to(device)`, so it stays on the CPU; use "
            "device cpu, or give it that method"
        )
    leaves_training: Any = getattr(tokenizer, "eval", None)
    if leaves_training is not None:
        leaves_training()
    return tokenizer


def _raster(tokenizer: Tokenizer) -> tuple[int, int]:
    rows, columns = tokenizer.spec.grid
    assert isinstance(rows, int)
    assert isinstance(columns, int)
    return rows, columns
