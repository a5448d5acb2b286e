"""The modules that an autoencoder is put together from, built from its options."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

import quantizers
from quantizers import Quantizer
from tokenizers_mm.models.autoencoder_config import AutoencoderConfig, encoder_channels
from tokenizers_mm.models.semantic_head import SemanticHead
from tokenizers_mm.nets import build_nets


class Parts(NamedTuple):
    """What the constructor of an autoencoder takes beside its options."""

    encoder: nn.Module
    bottleneck: Quantizer
    decoder: nn.Module
    semantic: SemanticHead | None


def build_parts(config: AutoencoderConfig) -> Parts:
    """Both nets, the bottleneck and the semantic head; `ValueError` naming the bad option."""
    bottleneck = quantizers.build(config.bottleneck, "bottleneck")
    channels, other = encoder_channels(config, bottleneck), config.decoder_net
    encoder, decoder = build_nets(config.net, channels, config.z_channels, decoder=other, image_size=config.image_size)
    semantic = None if config.semantic is None else SemanticHead(config.semantic, bottleneck.dim)
    return Parts(encoder, bottleneck, decoder, semantic)


def convolutions(config: AutoencoderConfig, bottleneck: Quantizer) -> tuple[nn.Module, nn.Module]:
    """Those before and after the bottleneck; `ValueError` where there are none and the widths do not agree."""
    before, after = config.quant_conv, config.post_quant_conv
    return (
        _convolution(encoder_channels(config, bottleneck), bottleneck.in_dim, before, config, bottleneck),
        _convolution(bottleneck.dim, config.z_channels, before if after is None else after, config, bottleneck),
    )


def _convolution(
    channels: int, out_channels: int, kernel: int, config: AutoencoderConfig, bottleneck: Quantizer
) -> nn.Module:
    if kernel:
        return nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2)
    if channels != out_channels:
        raise ValueError(
            f"z_channels={config.z_channels}: without quant_conv the bottleneck {bottleneck.kind} needs "
            f"{bottleneck.dim} channels"
        )
    return nn.Identity()
