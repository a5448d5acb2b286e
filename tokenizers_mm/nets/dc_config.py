"""Options of the deep-compression encoder-decoder (DC-AE, https://arxiv.org/abs/2410.10733)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

from tokenizers_mm.nets.conv_config import Activation
from tokenizers_mm.nets.options import NetOptions

Block = Literal["residual", "attention"]
Norm = Literal["rms", "batch"]
Downsampling = Literal["conv", "unshuffle"]
Upsampling = Literal["nearest", "shuffle"]


class Level(NamedTuple):
    """One resolution of one side."""

    width: int
    layers: int
    block: Block
    scales: tuple[int, ...]
    norm: Norm
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class DCConfig(NetOptions):
    """Shape of an encoder-decoder pair, level by level from full resolution down; each level halves both sides.

    widths      channels of each level; layers  blocks of each level. Level 0 may have none: then the convolution next
                to the image changes resolution itself, and the width of level 0 is not used
    blocks      of each level: "residual" (two convolutions) or "attention" (linear attention, then a gated convolution)
    scales      of each level: kernels of the extra q, k, v maps of its attention, each with heads of its own
    decoder_*   the same of the decoder, where a level also has a norm ("rms" over the channels of a position, "batch"
                over images and positions) and an activation; the encoder's are rms and SiLU
    last_activation  before the decoder's last convolution
    downsample  "unshuffle": convolution, then 2 x 2 positions become channels; "conv": convolution with stride 2
    upsample    "shuffle": convolution, then channels become 2 x 2 positions; "nearest": doubling, then a convolution
    encoder_shortcut, decoder_shortcut  add means of channel groups to the latent, and its repeated channels after it
    head_width  channels of an attention head
    """

    kind: Literal["dc"] = "dc"
    widths: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    layers: tuple[int, ...] = (0, 4, 8, 2, 2, 2)
    blocks: tuple[Block, ...] = ("residual", "residual", "residual", "attention", "attention", "attention")
    scales: tuple[tuple[int, ...], ...] = ((), (), (), (), (), ())
    decoder_widths: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    decoder_layers: tuple[int, ...] = (0, 5, 10, 2, 2, 2)
    decoder_blocks: tuple[Block, ...] = ("residual", "residual", "residual", "attention", "attention", "attention")
    decoder_scales: tuple[tuple[int, ...], ...] = ((), (), (), (), (), ())
    decoder_norms: tuple[Norm, ...] = ("batch", "batch", "batch", "rms", "rms", "rms")
    decoder_activations: tuple[Activation, ...] = ("relu", "relu", "relu", "silu", "silu", "silu")
    last_activation: Activation = "relu"
    downsample: Downsampling = "unshuffle"
    upsample: Upsampling = "shuffle"
    encoder_shortcut: bool = True
    decoder_shortcut: bool = True
    head_width: int = 32
    image_channels: int = 3

    def __post_init__(self) -> None:
        """Refuse lists of different lengths, unknown names, and widths that the shortcuts cannot connect."""
        count = len(self.widths)
        for name, value in vars(self).items():
            if isinstance(value, tuple) and (len(value) != count or not count):
                raise ValueError(f"{name}={value}: expected one entry per level, as widths={self.widths}")
        self._check_names()
        if self.head_width < 1 or self.image_channels < 1:
            raise ValueError(
                f"head_width={self.head_width}, image_channels={self.image_channels}: each must be at least 1"
            )
        self._check_side("", self.encoder_levels, 4 if self.downsample == "unshuffle" else 1)
        self._check_side("decoder_", self.decoder_levels, 1)

    def _check_names(self) -> None:
        for name, kind in (
            ("blocks", Block),
            ("decoder_blocks", Block),
            ("decoder_norms", Norm),
            ("decoder_activations", Activation),
            ("last_activation", Activation),
            ("downsample", Downsampling),
            ("upsample", Upsampling),
        ):
            value: Any = getattr(self, name)
            if not set(value if isinstance(value, tuple) else (value,)) <= set(get_args(kind)):
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(get_args(kind))}")

    def _check_side(self, side: str, levels: list[Level], divisor: int) -> None:
        """divisor: what a width below level 0 must be a multiple of, because the convolution gives a part of it."""
        widths, layers = [level.width for level in levels], [level.layers for level in levels]
        if min(widths) < 1 or min(layers) < 0 or 0 in layers[1:-1] or layers == [0]:
            raise ValueError(
                f"{side}widths={widths}, {side}layers={layers}: expected widths of at least 1, and blocks in every "
                "level, except that the first and the last of several may have none"
            )
        for i, (fine, coarse) in enumerate(pairwise(levels)):
            if coarse.width % divisor or (fine.layers and 4 * fine.width % coarse.width):
                raise ValueError(
                    f"{side}widths={widths}: level {i + 1} must divide 4 times level {i}"
                    + (f" and be a multiple of {divisor} for downsample={self.downsample}" if divisor > 1 else "")
                )
        for level in levels:
            if level.block == "attention" and level.layers and level.width < self.head_width:
                raise ValueError(f"{side}widths={widths}: attention needs at least head_width={self.head_width}")
            if any(kernel < 1 or kernel % 2 == 0 for kernel in level.scales):
                raise ValueError(f"{side}scales={level.scales}: expected odd kernels")

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, along each side."""
        return int(2 ** (len(self.widths) - 1))

    @property
    def encoder_levels(self) -> list[Level]:
        """Levels of the encoder, full resolution first."""
        per_level = zip(self.widths, self.layers, self.blocks, self.scales, strict=True)
        return [Level(*options, norm="rms", activation="silu") for options in per_level]

    @property
    def decoder_levels(self) -> list[Level]:
        """Levels of the decoder, full resolution first although it runs last."""
        options = (self.decoder_widths, self.decoder_layers, self.decoder_blocks, self.decoder_scales)
        return [Level(*one) for one in zip(*options, self.decoder_norms, self.decoder_activations, strict=True)]
