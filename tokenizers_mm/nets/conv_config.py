"""Options of the convolutional encoder-decoder: one set of them for the whole VQGAN / latent-diffusion lineage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tokenizers_mm.nets.options import NetOptions

Activation = Literal["silu", "relu", "gelu", "mish"]


@dataclass(frozen=True, kw_only=True)
class ConvConfig(NetOptions):
    """Shape of an encoder-decoder pair; each level after the first halves the resolution.

    channels          width of level 0; multipliers  width of each level over that of level 0 (fractions are allowed
                      where widths come out whole); decoder_multipliers  those of the decoder (default: the same)
    blocks            residual blocks of every encoder level, or of each; decoder_blocks  of the decoder (default: one
                      more than the encoder's)
    attention_levels  levels with attention after every residual block; decoder_attention_levels  those of the decoder
                      (default: the same)
    middle_blocks     residual blocks in the middle, with attention after the first if middle_attention
    patch             pixels per side that are folded into channels before the first convolution (1: none). Cheap
                      resolution: everything runs on patch^2 times fewer positions
    norm              "group": group normalisation over `groups` groups and all positions, as the public checkpoints;
                      "rms": over the channels of each position alone, so a position does not depend on the image size
    activation        after every normalisation
    bias              of the convolutions in residual blocks and of the encoder's first one
    downsample        "corner": stride-2 convolution, zero-padded right and below; "centre": padded on all sides;
                      "average": means of 2 x 2 positions
    upsample          "nearest": doubling, then a convolution; "depth": a convolution to 4 times the channels, which
                      become 2 x 2 positions
    encoder_out       kernel of the encoder's last convolution
    modulation        normalise the input of every decoder level, and give it mean and deviation by linear maps of the
                      latent's (Open-MAGVIT2, https://arxiv.org/abs/2409.04410)
    block_input_skip  False is MaskGIT's block: where the width changes, the shortcut reads the block's own output
    """

    kind: Literal["conv"] = "conv"
    channels: int = 128
    multipliers: tuple[float, ...] = (1, 2, 4, 4)
    decoder_multipliers: tuple[float, ...] | None = None
    blocks: int | tuple[int, ...] = 2
    decoder_blocks: int | tuple[int, ...] | None = None
    attention_levels: tuple[int, ...] = ()
    decoder_attention_levels: tuple[int, ...] | None = None
    middle_blocks: int = 2
    middle_attention: bool = True
    patch: int = 1
    norm: Literal["group", "rms"] = "group"
    groups: int = 32
    activation: Activation = "silu"
    bias: bool = True
    downsample: Literal["corner", "centre", "average"] = "corner"
    upsample: Literal["nearest", "depth"] = "nearest"
    encoder_out: int = 3
    modulation: bool = False
    block_input_skip: bool = True
    image_channels: int = 3

    def __post_init__(self) -> None:
        """Refuse widths that the normalisation groups do not divide, and levels that are not there."""
        count = len(self.multipliers)
        for name in ("multipliers", "decoder_multipliers"):  # 2.0 is 2: equal shapes have equal fingerprints
            given = getattr(self, name)
            whole = given and tuple(int(m) if float(m).is_integer() else m for m in given)
            object.__setattr__(self, name, whole)
        if not count or min(*self.multipliers, *(self.decoder_multipliers or (1,)), 1) <= 0 or self.patch < 1:
            raise ValueError(f"multipliers={self.multipliers}, patch={self.patch}: every one must be positive")
        if self.activation not in get_args(Activation):
            raise ValueError(f"activation={self.activation!r}: expected one of {', '.join(get_args(Activation))}")
        if self.channels < 1 or self.middle_blocks < 1 or self.encoder_out not in (1, 3):
            raise ValueError(
                f"channels={self.channels}, middle_blocks={self.middle_blocks}, encoder_out={self.encoder_out}: "
                "expected at least 1, at least 1, and a kernel of 1 or 3"
            )
        for name in ("blocks", "decoder_blocks"):
            per_level = self.per_level(name)
            if len(per_level) != count or min(per_level) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)}: expected a number of at least 1, or {count} of them, one per level"
                )
        if self.decoder_multipliers is not None and len(self.decoder_multipliers) != count:
            raise ValueError(f"decoder_multipliers={self.decoder_multipliers}: expected {count}, one per level")
        for width in (*self.widths, *self.decoder_widths):
            if self.norm == "group" and width % self.groups:
                wanted = f"a multiple of groups={self.groups} at every level"
                raise ValueError(f"channels={self.channels}: expected {wanted}, found {width}")
        for levels in (self.attention_levels, self.decoder_attention_levels or ()):
            if any(not 0 <= level < count for level in levels):
                raise ValueError(f"attention_levels={levels}: levels are 0..{count - 1}")

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, along each side."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))

    @property
    def widths(self) -> list[int]:
        """Channels of each encoder level."""
        return [_whole(self.channels * m, self.channels) for m in self.multipliers]

    @property
    def decoder_widths(self) -> list[int]:
        """Channels of each decoder level."""
        return [_whole(self.channels * m, self.channels) for m in self.decoder_multipliers or self.multipliers]

    def per_level(self, name: str) -> tuple[int, ...]:
        """Residual blocks of each level."""
        value = self.blocks if name == "blocks" or self.decoder_blocks is None else self.decoder_blocks
        extra = 1 if name == "decoder_blocks" and self.decoder_blocks is None else 0
        return tuple(n + extra for n in (value if isinstance(value, tuple) else (value,) * len(self.multipliers)))


def _whole(width: float, channels: int) -> int:
    if abs(width - round(width)) > 1e-6 or width < 1:
        raise ValueError(f"channels={channels}: a level of {width:g} channels is not a whole number")
    return round(width)
