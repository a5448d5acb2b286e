"""Geometry of two tokenizers in one, see `tokenizers_mm.models.fused`."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from tokenizers_mm.api import TokenSpec
from tokenizers_mm.geometry import single_grids

__all__ = ["channel_spec", "same_image", "sequence_spec"]


def channel_spec(semantic: TokenSpec, perceptual: TokenSpec) -> TokenSpec:
    """Both halves of one image at every position of the perceptual grid. Raises `ValueError` where that cannot be."""
    _same_nature(semantic, perceptual)
    if semantic.grid != perceptual.grid or semantic.layout != perceptual.layout:
        if semantic.discrete:
            raise ValueError(
                f"semantic grid {semantic.grid} ({semantic.layout}), perceptual grid {perceptual.grid} "
                f"({perceptual.layout}): codes cannot be interpolated; choose equal downsamplings, or how='sequence'"
            )
        if semantic.layout != "raster" or perceptual.layout != "raster":
            raise ValueError(
                f"semantic layout {semantic.layout!r}, perceptual layout {perceptual.layout!r}: only rasters can be "
                "interpolated; use how='sequence'"
            )
    dim, codes = semantic.dim + perceptual.dim, semantic.codes + perceptual.codes
    return replace(perceptual, dim=dim, codes=codes)


def sequence_spec(semantic: TokenSpec, perceptual: TokenSpec) -> TokenSpec:
    """Semantic positions, then perceptual ones. Raises `ValueError` for different numbers of streams."""
    _same_nature(semantic, perceptual)
    if semantic.streams != perceptual.streams:
        raise ValueError(
            f"{semantic.streams} semantic and {perceptual.streams} perceptual codes per position: a sequence has one "
            "number of streams; use quantizers with equally many, or how='channel'"
        )
    return TokenSpec(
        image_size=perceptual.image_size,
        grid=(*_maps(semantic), *_maps(perceptual)),
        dim=max(semantic.dim, perceptual.dim),
        codes=tuple(a + b for a, b in zip(semantic.codes, perceptual.codes, strict=True)),
        layout="parts",
    )


def same_image(semantic: TokenSpec, perceptual: TokenSpec) -> TokenSpec:
    """The semantic half's spec at the perceptual half's image size."""
    try:
        return semantic.resized(perceptual.image_size)
    except ValueError as error:
        raise ValueError(
            f"semantic half: {error}; build it for images of {perceptual.image_size}, as the perceptual half is"
        ) from error


def _maps(spec: TokenSpec) -> list[tuple[int, int]]:
    """Grids (h, w) of a spec; a sequence is one row."""
    return [cast(tuple[int, int], (1, *grid)[-2:]) for grid in single_grids(spec.grid)]


def _same_nature(semantic: TokenSpec, perceptual: TokenSpec) -> None:
    if semantic.discrete != perceptual.discrete:
        kinds = ["codes" if spec.discrete else "latents" for spec in (semantic, perceptual)]
        raise ValueError(
            f"the semantic half gives {kinds[0]} and the perceptual half {kinds[1]}: expected the same of both; "
            "quantise the continuous one, or take the latents before the other's quantizer"
        )
