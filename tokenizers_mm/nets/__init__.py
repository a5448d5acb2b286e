"""Networks that tokenizers are made of: image -> features, features -> image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag
from torch import nn

from tokenizers_mm.nets.causal import CausalConfig, CausalDecoder, CausalEncoder
from tokenizers_mm.nets.conv import Decoder, Encoder
from tokenizers_mm.nets.conv_config import ConvConfig
from tokenizers_mm.nets.dc import DCConfig, DCDecoder, DCEncoder
from tokenizers_mm.nets.emu3 import Emu3Config, Emu3Decoder, Emu3Encoder


def _kind(config: Any) -> Any:
    return config.get("kind", "conv") if isinstance(config, Mapping) else getattr(config, "kind", None)


NetConfig = Annotated[
    Annotated[ConvConfig, Tag("conv")]
    | Annotated[DCConfig, Tag("dc")]
    | Annotated[CausalConfig, Tag("causal")]
    | Annotated[Emu3Config, Tag("emu3")],
    Discriminator(_kind),
]

__all__ = ["CausalConfig", "ConvConfig", "DCConfig", "Emu3Config", "NetConfig", "build_nets"]

_NETS: dict[str, tuple[Any, Any]] = {
    "conv": (Encoder, Decoder),
    "dc": (DCEncoder, DCDecoder),
    "causal": (CausalEncoder, CausalDecoder),
    "emu3": (Emu3Encoder, Emu3Decoder),
}


def build_nets(config: NetConfig, encoder_channels: int, decoder_channels: int) -> tuple[nn.Module, nn.Module]:
    """Encoder that gives `encoder_channels`, and decoder that takes `decoder_channels`."""
    encoder, decoder = _NETS[config.kind]
    return encoder(config, encoder_channels), decoder(config, decoder_channels)
