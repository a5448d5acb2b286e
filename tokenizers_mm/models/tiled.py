"""Images of any size through a tokenizer, tile by tile: memory is that of the result and of one batch of tiles.

Encoder features are blended before the bottleneck, so codes are those of the blended features and not a vote of tiles;
decoded pixels are blended after the decoder. Of a tokenizer that does not show its features latents are blended, and a
code is that of the tile in whose middle it lies. Tile corners are multiples of the downsampling, and images are padded
only below and on the right, as `pad_to_multiple` does.

A tile differs from the whole image for two reasons. Beyond its borders it sees the zeros that convolutions pad with,
and that reaches as far inside as the net's receptive field: the outer quarters of an overlap therefore weigh nothing,
and an overlap of four times that reach removes the difference. And what a net takes over all positions (group
normalisation, attention) it takes over the tile: no overlap removes that, only larger tiles make it smaller.
`tiling_error` measures both.

Shape letters: B batch, C channels, D latent channels, H and W pixels, h and w positions per side, N = h * w.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from tokenizers_mm.api import Quantizer, Tokenizer, Tokens, TokenSpec
from tokenizers_mm.data import pad_to_multiple, unpad
from tokenizers_mm.geometry import FeatureGrid, Grid, single_grids
from tokenizers_mm.models.tile_weights import pieces
from tokenizers_mm.models.vectors import Vectors
from tokenizers_mm.traits import downsampling_of, on_device, quantizer_of, takes_one_size

__all__ = ["Tiled", "tiling_error"]


class Tiled:
    """A `Tokenizer` around another one, for images of any size, also those that memory does not allow at once.

    tokenizer  any whose tokens are a raster
    tile     pixels per side, rounded down to the downsampling; as large as memory allows. None: no tiles, only batches
    overlap  least pixels that neighbouring tiles share (int), or their fraction of the tile (float below 1), rounded up
             to the downsampling
    batch    tiles that go through the nets together, of one image or of several

    An image that fits in one tile gives bit for bit what the tokenizer gives in batches of this size.
    Raises `ValueError` for impossible sizes, and for tokenizers that take one image size only.
    """

    def __init__(
        self, tokenizer: Tokenizer, tile: int | None = 512, overlap: int | float = 0.25, batch: int = 1
    ) -> None:
        self.tokenizer, self.tile, self.overlap, self.batch = tokenizer, tile, overlap, batch
        f = self.downsampling = downsampling_of(tokenizer)
        if takes_one_size(tokenizer):
            why = {
                "raster": "a size of its own (what it resizes to, or latent statistics per position)",
                "scales": "a multi-scale bottleneck",
                "parts": "positions of several grids",
            }.get(tokenizer.spec.layout, "tokens that belong to no place")
            raise ValueError(f"tokenizer has {why}: it takes images of {tokenizer.spec.image_size} only, never tiles")
        if getattr(tokenizer, "generative", False):
            raise ValueError("tokenizer has a flow decoder: it would paint every tile anew, decode images whole")
        self._parts = _parts_of(tokenizer)
        if batch < 1 or (tile is not None and tile < f):
            raise ValueError(f"tile={tile}, batch={batch}: expected at least the downsampling {f} and at least 1")
        pixels = overlap * (tile or 0) if isinstance(overlap, float) else overlap
        # In positions. None is more than any image has.
        self._tile, self._overlap = (tile or 2**40) // f, math.ceil(pixels / f)
        if overlap < 0 or self._overlap >= self._tile or (isinstance(overlap, float) and overlap >= 1):
            raise ValueError(f"overlap={overlap}: expected less than the tile of {tile} pixels, not negative")

    @property
    def spec(self) -> TokenSpec:
        """The tokenizer's own."""
        return self.tokenizer.spec

    @property
    def quantizer(self) -> Quantizer | None:
        """The tokenizer's."""
        return quantizer_of(self.tokenizer)

    def to(self, device: torch.device | str) -> Self:
        """Move the tokenizer, and take it out of training mode; returns itself."""
        self.tokenizer = on_device(self.tokenizer, device)
        self._parts = _parts_of(self.tokenizer)
        return self

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor, *, sample: torch.Generator | None = None) -> Tokens:
        """Tokens of images in [-1, 1] of any size, padded below and right to the downsampling; see the tokenizer's."""
        return self._parts.tokens_of(self.features(image_BCHW), sample=sample)

    def embed(self, tokens: Tokens) -> Tensor:
        """Vectors [B, N, D], the tokenizer's."""
        return self.tokenizer.embed(tokens)

    @torch.no_grad()
    def decode(self, tokens: Tokens, size: tuple[int, int] | None = None) -> Tensor:
        """Images [B, C, H, W] of about [-1, 1], not clamped; `size` (height, width) cuts the padding of `encode`."""
        vectors = self._parts.vectors(tokens)
        f = self.downsampling
        padded = tuple(side * f // self._parts.latent_patch for side in vectors.grid)
        if size is not None and tuple(side + -side % f for side in size) != padded:
            raise ValueError(f"size={size}: these tokens decode to {padded}, of which {f - 1} each may be padding")
        image_BCHW = self.pixels(vectors)
        return image_BCHW if size is None else unpad(image_BCHW, size)

    def reconstruct(self, image_BCHW: Tensor) -> Tensor:
        """Through the tokens and back, at the images' own size."""
        return self.decode(self.encode(image_BCHW), (image_BCHW.shape[2], image_BCHW.shape[3]))

    @torch.no_grad()
    def features(self, image_BCHW: Tensor) -> Vectors:
        """Blended features [B, N, in_dim] of images of any size: what `tokens_of` takes."""
        if image_BCHW.ndim != 4 or not image_BCHW.is_floating_point() or not image_BCHW.numel():
            found = f"{tuple(image_BCHW.shape)} {image_BCHW.dtype}"
            raise ValueError(f"image_BCHW is {found}: expected float pixels [batch, channels, H, W] in [-1, 1]")
        f = self.downsampling
        if image_BCHW.shape[2] % f or image_BCHW.shape[3] % f:  # padding copies
            image_BCHW, _ = pad_to_multiple(image_BCHW, f)

        def net(tile_BCHW: Tensor) -> Tensor:
            return self._parts.features(tile_BCHW).as_map()

        sharp = self.spec.discrete and not self._shows_features
        return Vectors.of_map(self._blended(net, image_BCHW, f, self._parts.latent_patch, sharp))

    @torch.no_grad()
    def pixels(self, vectors: Vectors) -> Tensor:
        """Blended images [B, C, H, W] of the vectors that go to the decoder."""

        def net(z_BDhw: Tensor) -> Tensor:
            return self._parts.pixels(Vectors.of_map(z_BDhw))

        return self._blended(net, vectors.as_map(), self._parts.latent_patch, self.downsampling)

    @property
    def _shows_features(self) -> bool:
        return hasattr(self.tokenizer, "tokens_of")

    def _blended(
        self, net: Callable[[Tensor], Tensor], x_BCHW: Tensor, step_in: int, step_out: int, sharp: bool = False
    ) -> Tensor:
        """`net` of all of `x`, from tiles. A latent position is step_in rows and columns of x, step_out of the result.

        sharp  take each position from one tile only

        Sums are float32 at least; a weight of one is exact, so a single tile is left as it is.
        """
        images, _, height, width = x_BCHW.shape
        cut = (self._tile, self._overlap, step_in, step_out, sharp)
        rows, columns = (pieces(side // step_in, *cut) for side in (height, width))
        jobs = list(product(range(images), rows, columns))
        total: Tensor | None = None
        for first in range(0, len(jobs), self.batch):
            batch = jobs[first : first + self.batch]
            out = net(torch.cat([x_BCHW[b : b + 1, :, row.source, column.source] for b, row, column in batch]))
            if total is None:
                shape = (images, out.shape[1], height // step_in * step_out, width // step_in * step_out)
                total = out.new_zeros(shape, dtype=torch.promote_types(out.dtype, torch.float32))
            for (b, row, column), tile_CHW in zip(batch, out, strict=True):
                weight_HW = (row.weight[:, None] * column.weight).to(out.device)
                total[b, :, row.target, column.target] += tile_CHW * weight_HW
        assert total is not None
        return total.to(out.dtype)


class _Parts(Protocol):
    """A tokenizer that can be cut where the vectors are, between its nets and its bottleneck, as an autoencoder can.

    latent_patch  vectors on each side of a square as large as the downsampling
    """

    @property
    def latent_patch(self) -> int: ...
    def features(self, image_BCHW: Tensor) -> Vectors: ...
    def tokens_of(self, features: Vectors, *, sample: torch.Generator | None = None) -> Tokens: ...
    def vectors(self, tokens: Tokens) -> Vectors: ...
    def pixels(self, vectors: Vectors) -> Tensor: ...


def _parts_of(tokenizer: Any) -> _Parts:
    """The tokenizer itself where it shows its features, else its tokens in their place."""
    return tokenizer if hasattr(tokenizer, "tokens_of") else _TokensAlone(tokenizer)


class _TokensAlone:
    """A tokenizer that does not show its features, seen as one that does: its tokens stand for them.

    Codes are float64 here, which holds all of them exactly.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, spec, f = tokenizer, tokenizer.spec, downsampling_of(tokenizer)
        per_side = {(f * cells) / pixels for cells, pixels in zip(_plain(spec.grid), spec.image_size, strict=True)}
        if len(per_side) > 1 or not min(per_side).is_integer():
            raise ValueError(
                f"tokenizer has a grid of {spec.grid} for images of {spec.image_size}: tiles need positions that are "
                "squares of whole pixels"
            )
        # Not read: token stores remember a fingerprint of what a plain tokenizer and its wrappers hold.
        self.config = SimpleNamespace(net=SimpleNamespace(downsampling=f), latent_patch=1, latent_positions=False)

    @property
    def latent_patch(self) -> int:
        spec = self.tokenizer.spec
        return downsampling_of(self.tokenizer) * _plain(spec.grid)[0] // spec.image_size[0]

    def features(self, image_BCHW: Tensor) -> Vectors:
        return self.vectors(self.tokenizer.encode(image_BCHW))

    def tokens_of(self, features: Vectors, *, sample: torch.Generator | None = None) -> Tokens:
        if sample is not None:
            raise ValueError(f"sample: {type(self.tokenizer).__name__} has no posterior to draw from")
        if self.tokenizer.spec.discrete:
            return Tokens(codes_BNS=features.z_BND.long(), grid=features.grid)
        return Tokens(latents_BND=features.z_BND, grid=features.grid)

    def vectors(self, tokens: Tokens) -> Vectors:
        data = tokens.data.double() if self.tokenizer.spec.discrete else tokens.data
        return Vectors(data, _plain(tokens.grid))

    def pixels(self, vectors: Vectors) -> Tensor:
        return self.tokenizer.decode(self.tokens_of(vectors))


def _plain(grid: Grid) -> FeatureGrid:
    (one,) = single_grids(grid)
    return one


@torch.no_grad()
def tiling_error(
    tokenizer: Tokenizer, image_BCHW: Tensor, tile: int = 512, overlap: int | float = 0.25
) -> dict[str, float]:
    """What tiling changes, on images of any size that fit in memory whole.

    features    what the bottleneck receives: norm of the difference over that of the deviations from channel means;
                not of a tokenizer that does not show it
    latents     the same of continuous latents, or codes: fraction of the codes that differ
    decode      PSNR in dB (pixels clamped, peak 2) between tiled and whole decoding of the same tokens
    round_trip  PSNR in dB between reconstructions, tiled both ways and whole both ways
    """
    whole, tiled = Tiled(tokenizer, None), Tiled(tokenizer, tile, overlap)
    features, tiled_features = whole.features(image_BCHW), tiled.features(image_BCHW)
    tokens, tiled_tokens = (whole._parts.tokens_of(found) for found in (features, tiled_features))
    changed = {"features": _relative(tiled_features.z_BND, features.z_BND)} if whole._shows_features else {}
    if tokens.codes_BNS is None:
        changed["latents"] = _relative(tiled_tokens.data, tokens.data)
    else:
        changed["codes"] = float((tiled_tokens.data != tokens.data).float().mean())
    image_BCHW = whole.decode(tokens)
    return {
        **changed,
        "decode": _psnr(tiled.decode(tokens), image_BCHW),
        "round_trip": _psnr(tiled.decode(tiled_tokens), image_BCHW),
    }


def _relative(found_BND: Tensor, expected_BND: Tensor) -> float:
    deviation = expected_BND - expected_BND.mean((0, 1))
    return float((found_BND - expected_BND).norm() / deviation.norm())


def _psnr(found_BCHW: Tensor, expected_BCHW: Tensor) -> float:
    error = (found_BCHW.clamp(-1, 1) - expected_BCHW.clamp(-1, 1)).square().mean()
    return float(10 * torch.log10(4 / error))
