"""Where a decoder paints: the little it has to know about its encoder."""

from __future__ import annotations

from typing import NamedTuple


class Geometry(NamedTuple):
    """What features and images have to do with each other.

    image_size    (height, width) in pixels that the tokenizer is stated for
    downsampling  pixels per position, along each side of a map
    tokens        positions of a one-dimensional tokenizer, whose features are [B, C, 1, tokens]; None: those of a map
    """

    image_size: tuple[int, int]
    downsampling: int
    tokens: int | None = None

    def size_of(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the image that belongs to features of `grid` rows and columns."""
        if self.tokens is not None:
            return self.image_size
        return (grid[0] * self.downsampling, grid[1] * self.downsampling)
