"""The contract: what tokens are, what a tokenizer does, what a generator does. Nothing else crosses a floor.

Everything downstream of a tokenizer (storage, backbones, measurement) sees `Tokens` and a `TokenSpec` and never the
tokenizer's insides, so any tokenizer plugs into any backbone. None of the protocols needs a base class.

Shape letters: B batch, C image channels, H and W pixels, N positions, S streams (codes per position), D channels of
one position's vector. Images are float in [-1, 1].
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from quantizers.base import Quantized, Quantizer
from tokenizers_mm.geometry import Grid, as_grid, positions, single_grids

__all__ = ["Batch", "Generator", "Layout", "Quantized", "Quantizer", "TokenSpec", "Tokenizer", "Tokens"]

Layout = Literal["raster", "sequence", "nested", "scales", "parts"]

# Numbers of one grid of a layout; None where it is several grids (h, w).
_NUMBERS: dict[str, int | None] = {"raster": 2, "sequence": 1, "nested": 1, "scales": None, "parts": None}


@dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """Geometry and vocabulary of one image's tokens; stated here once and never repeated downstream.

    image_size  (height, width) in pixels that the grid belongs to
    grid        (h, w) positions in raster order, (n,) a sequence, or ((h1, w1), (h2, w2), ...), one grid after another
    dim         channels D of one position's vector (what `Tokenizer.embed` returns)
    codes       vocabulary of each of the S streams; empty means continuous latents
    layout      what positions are: raster (h, w); sequence (n,); nested, a sequence of which any prefix decodes;
                scales, grids of one image from coarse to fine; parts, grids none of which is a coarser other
    """

    image_size: tuple[int, int]
    grid: Grid
    dim: int
    codes: tuple[int, ...] = ()
    layout: Layout = "raster"

    def __post_init__(self) -> None:
        """Normalise lists (as JSON gives them) to tuples and refuse impossible geometry."""
        height, width = self.image_size
        grid = as_grid(self.grid)
        object.__setattr__(self, "image_size", (int(height), int(width)))
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "codes", tuple(int(size) for size in self.codes))
        if min(height, width) < 1:
            raise ValueError(f"image_size={self.image_size}: both sides must be at least 1 pixel")
        if not grid or min(map(min, single_grids(grid))) < 1:
            raise ValueError(f"grid={self.grid}: expected (h, w), (n,) or ((h, w), ...), every side at least 1")
        if self.dim < 1:
            raise ValueError(f"dim={self.dim}: a position needs at least 1 channel")
        if any(size < 2 for size in self.codes):
            raise ValueError(f"codes={self.codes}: every stream needs a vocabulary of at least 2")
        if self.layout not in _NUMBERS:
            raise ValueError(f"layout={self.layout!r}: expected {', '.join(_NUMBERS)}")
        if _NUMBERS[self.layout] != (None if isinstance(grid[0], tuple) else len(grid)):
            raise ValueError(
                f"grid={self.grid} does not fit layout={self.layout!r}: raster takes (h, w), sequence and nested (n,), "
                "scales and parts ((h, w), ...)"
            )

    @property
    def discrete(self) -> bool:
        """True where a position is codes, False where it is a latent vector."""
        return bool(self.codes)

    @property
    def streams(self) -> int:
        """Codes per position, S; 0 for continuous latents."""
        return len(self.codes)

    @property
    def length(self) -> int:
        """Positions per image, N."""
        return positions(self.grid)

    @property
    def bits_per_image(self) -> float:
        """Information the tokens of one image can carry: N * sum(log2 V), or 16 bits a channel for latents (bf16)."""
        per_position = sum(math.log2(size) for size in self.codes) if self.discrete else 16.0 * self.dim
        return self.length * per_position

    @property
    def bits_per_pixel(self) -> float:
        """`bits_per_image` over height * width."""
        return self.bits_per_image / math.prod(self.image_size)

    @property
    def code_bits(self) -> tuple[int, ...]:
        """Whole bits that hold one code of each stream: ceil(log2 V)."""
        return tuple((size - 1).bit_length() for size in self.codes)

    @property
    def stored_bits_per_image(self) -> int:
        """Bits one image takes in a token store: `bits_per_image` with every code rounded up to whole bits."""
        return self.length * (sum(self.code_bits) if self.discrete else 16 * self.dim)

    def resized(self, image_size: tuple[int, int]) -> TokenSpec:
        """Return the spec of the same tokenizer on another image size (raster grids only).

        Raises `ValueError` where a side is not a multiple of the downsampling.
        """
        image_size = (int(image_size[0]), int(image_size[1]))
        if image_size == self.image_size:
            return self
        if self.layout != "raster":
            raise ValueError(f"image_size={image_size}: this tokenizer takes {self.image_size} only")
        steps = [pixels // cells for pixels, cells in zip(self.image_size, single_grids(self.grid)[0], strict=True)]
        for side, step in zip(image_size, steps, strict=True):
            if side < step or side % step:
                raise ValueError(
                    f"image_size={image_size}: {side} is not a multiple of the downsampling {step}; "
                    "crop, resize, or pad with tokenizers_mm.data.images.pad_to_multiple"
                )
        grid = tuple(side // step for side, step in zip(image_size, steps, strict=True))
        return replace(self, image_size=image_size, grid=grid)

    def same_tokens(self, other: TokenSpec) -> bool:
        """Whether tokens of one are tokens of the other, one of them perhaps written down by an earlier version."""
        return self.identity() == other.identity()

    def identity(self) -> dict[str, Any]:
        """Fields that specs are compared and fingerprinted by: what every version wrote, the layout as `order`.

        Parts read as scales: that is what they were called in stores, generators and fingerprints before `parts`.
        """
        return self._fields("scales" if self.layout == "parts" else self.layout)

    def to_json(self) -> str:
        """One line of JSON, in which the layout has the key `order`; `from_json` is its inverse."""
        return json.dumps(self._fields(self.layout))

    @classmethod
    def from_json(cls, text: str) -> TokenSpec:
        """Read what `to_json` wrote; raises `ValueError` on anything else."""
        fields = json.loads(text)
        known = ["image_size", "grid", "dim", "codes", "order"]
        if not isinstance(fields, dict) or not set(fields) <= set(known):
            raise ValueError(f"token spec {text!r}: expected a JSON object with the keys {known}")
        layout = {"layout": fields.pop("order")} if "order" in fields else {}
        try:
            return cls(**fields, **layout)
        except TypeError as error:
            raise ValueError(f"token spec {text!r}: {error}") from error

    def _fields(self, order: str) -> dict[str, Any]:
        return {
            "image_size": self.image_size,
            "grid": self.grid,
            "dim": self.dim,
            "codes": self.codes,
            "order": order,
        }


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of images as tokens: codes [B, N, S] int64, or latents [B, N, D] float of unit variance.

    grid     of these images; it is what lets a convolutional tokenizer decode any image size
    checked  vocabularies that `check` has found the codes to fit, () for finite latents; None: it has not looked

    A value: the tensor is not to be changed in place.
    """

    codes_BNS: Tensor | None = None
    latents_BND: Tensor | None = None
    grid: Grid = ()
    checked: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse anything that is not exactly one three-dimensional tensor that fits the grid."""
        if (self.codes_BNS is None) == (self.latents_BND is None):
            raise ValueError("Tokens hold either codes_BNS or latents_BND, exactly one of them")
        data, name = self.data, "codes_BNS" if self.latents_BND is None else "latents_BND"
        if data.ndim != 3:
            raise ValueError(f"{name} has shape {tuple(data.shape)}: expected three dimensions [batch, position, ...]")
        if self.codes_BNS is not None and self.codes_BNS.dtype != torch.int64:
            raise ValueError(f"codes_BNS is {self.codes_BNS.dtype}: expected int64")
        if self.latents_BND is not None and not self.latents_BND.is_floating_point():
            raise ValueError(f"latents_BND is {self.latents_BND.dtype}: expected a float type")
        grid = as_grid(self.grid or (data.shape[1],))
        object.__setattr__(self, "grid", grid)
        if positions(grid) != data.shape[1]:
            raise ValueError(f"{name} has {data.shape[1]} positions but grid {grid} has {positions(grid)}")

    @property
    def data(self) -> Tensor:
        """The tensor that is there, whichever of the two it is."""
        data = self.codes_BNS if self.latents_BND is None else self.latents_BND
        assert data is not None
        return data

    def __len__(self) -> int:
        return self.data.shape[0]

    def __getitem__(self, index: slice | Tensor | list[int]) -> Self:
        return self._with(self.data[index])

    def to(self, target: torch.device | str | torch.dtype) -> Self:
        """Move to a device, or change the dtype of latents (codes stay int64)."""
        if not isinstance(target, torch.dtype):
            return self._with(self.data.to(target))
        # What is finite may overflow in another type.
        return self if self.codes_BNS is not None else replace(self, latents_BND=self.data.to(target), checked=None)

    def _with(self, data: Tensor) -> Self:
        if self.latents_BND is None:
            return replace(self, codes_BNS=data)
        return replace(self, latents_BND=data)

    def check(self, spec: TokenSpec) -> Self:
        """These tokens, if they are well-formed tokens of `spec` (codes in range, latents finite); `ValueError` if not.

        What it returns remembers that its values were read, on another device and in part too. Kind and width are
        looked at every time, values once: reading them waits for the device, which no step of a training may.
        """
        if (self.codes_BNS is not None) != spec.discrete:
            here, there = ("codes", "latents") if self.codes_BNS is not None else ("latents", "codes")
            raise ValueError(f"these tokens are {here} but the tokenizer works with {there}")
        width = spec.streams if spec.discrete else spec.dim
        if self.data.shape[2] != width:
            kind = "streams" if spec.discrete else "channels"
            raise ValueError(f"tokens have {self.data.shape[2]} {kind}, expected {width}")
        if self.checked == spec.codes:
            return self
        if self.codes_BNS is None:
            if not bool(torch.isfinite(self.data).all()):
                raise ValueError("latents hold NaN or Inf")
        elif self.codes_BNS.numel():
            ends_2S = torch.stack(torch.aminmax(self.codes_BNS.flatten(0, 1), dim=0)).tolist()
            for stream, (least, most, size) in enumerate(zip(*ends_2S, spec.codes, strict=True)):
                if least < 0 or most >= size:
                    raise ValueError(
                        f"codes of stream {stream} lie in [{least}, {most}]: the vocabulary is 0..{size - 1}"
                    )
        return replace(self, checked=spec.codes)


@dataclass(frozen=True, eq=False)
class Batch:
    """What a generator trains on: tokens, and the condition they belong to (captions, class labels, or neither).

    label_range  least and greatest label where they are known, so that nobody reads the labels on a device again
    """

    tokens: Tokens
    captions: Sequence[str] = ()
    labels_B: Tensor | None = None
    label_range: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | str) -> Batch:
        """Move tokens and labels to a device."""
        labels_B = None if self.labels_B is None else self.labels_B.to(device)
        return replace(self, tokens=self.tokens.to(device), labels_B=labels_B)


@runtime_checkable
class Tokenizer(Protocol):
    """Images <-> tokens. Any object with these members is a tokenizer; no base class is needed.

    `traits` says which further members are understood.
    """

    @property
    def spec(self) -> TokenSpec:
        """Geometry and vocabulary at the tokenizer's own image size."""

    def encode(self, image_BCHW: Tensor) -> Tokens:
        """Encode images in [-1, 1] whose sides are multiples of the downsampling; deterministic."""

    def embed(self, tokens: Tokens) -> Tensor:
        """Vectors [B, N, D] that the codes stand for; the latents themselves when continuous."""

    def decode(self, tokens: Tokens) -> Tensor:
        """Images [B, C, H, W] in about [-1, 1] (not clamped)."""


Condition = Sequence[str] | Tensor


@runtime_checkable
class Generator(Protocol):
    """Tokens -> likelihood or velocity -> tokens. Knows a `TokenSpec`, never a tokenizer."""

    spec: TokenSpec

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Named scalar losses; the value to minimise is their sum."""

    def sample(self, condition: Condition, *, guidance: float = 1.0, seed: int | None = None) -> Tokens:
        """Draw one image's tokens for every caption, or every class label [B] int64, in `condition`."""
