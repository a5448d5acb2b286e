"""Networks that tokenizers are made of: image -> features, features -> image."""

from __future__ import annotations

from torch import nn

from tokenizers_mm.nets.conv import Decoder, Encoder
from tokenizers_mm.nets.conv_config import ConvConfig

NetConfig = ConvConfig

__all__ = ["ConvConfig", "NetConfig", "build_nets"]

_NETS = {"conv": (Encoder, Decoder)}


def build_nets(config: NetConfig, encoder_channels: int, decoder_channels: int) -> tuple[nn.Module, nn.Module]:
    """Encoder that gives `encoder_channels`, and decoder that takes `decoder_channels`."""
    encoder, decoder = _NETS[config.kind]
    return encoder(config, encoder_channels), decoder(config, decoder_channels)
