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
from tokenizers_mm.nets.flow_decoder import FlowDecoder, FlowDecoderConfig
from tokenizers_mm.nets.geometry import Geometry
from tokenizers_mm.nets.query import QueryConfig, QueryDecoder, QueryEncoder
from tokenizers_mm.nets.tower_net import TowerEncoder, TowerNetConfig
from tokenizers_mm.nets.vit import ViTConfig, ViTDecoder, ViTEncoder


def _kind(config: Any) -> Any:
    return config.get("kind", "conv") if isinstance(config, Mapping) else getattr(config, "kind", None)


NetConfig = Annotated[
    Annotated[ConvConfig, Tag("conv")]
    | Annotated[DCConfig, Tag("dc")]
    | Annotated[CausalConfig, Tag("causal")]
    | Annotated[Emu3Config, Tag("emu3")]
    | Annotated[ViTConfig, Tag("vit")]
    | Annotated[QueryConfig, Tag("query")]
    | Annotated[TowerNetConfig, Tag("tower")],
    Discriminator(_kind),
]
DecoderConfig = Annotated[
    Annotated[ConvConfig, Tag("conv")]
    | Annotated[DCConfig, Tag("dc")]
    | Annotated[CausalConfig, Tag("causal")]
    | Annotated[Emu3Config, Tag("emu3")]
    | Annotated[ViTConfig, Tag("vit")]
    | Annotated[QueryConfig, Tag("query")]
    | Annotated[FlowDecoderConfig, Tag("flow")],
    Discriminator(_kind),
]

__all__ = [
    "CausalConfig",
    "ConvConfig",
    "DCConfig",
    "DecoderConfig",
    "Emu3Config",
    "FlowDecoder",
    "FlowDecoderConfig",
    "Geometry",
    "NetConfig",
    "QueryConfig",
    "TowerNetConfig",
    "ViTConfig",
    "build_nets",
]

_ENCODERS: dict[str, Any] = {
    "conv": Encoder,
    "dc": DCEncoder,
    "causal": CausalEncoder,
    "emu3": Emu3Encoder,
    "vit": ViTEncoder,
    "query": QueryEncoder,
    "tower": TowerEncoder,
}
_DECODERS: dict[str, Any] = {
    "conv": Decoder,
    "dc": DCDecoder,
    "causal": CausalDecoder,
    "emu3": Emu3Decoder,
    "vit": ViTDecoder,
    "query": QueryDecoder,
    "flow": FlowDecoder,
}
_PLACED = (QueryEncoder, QueryDecoder, FlowDecoder)  # those that have to know the geometry


def geometry_of(net: NetConfig, image_size: tuple[int, int]) -> Geometry:
    """Where decoders of this net's features paint."""
    return Geometry(image_size, net.downsampling, net.tokens if isinstance(net, QueryConfig) else None)


def check_pair(net: NetConfig, decoder: DecoderConfig | None) -> None:
    """Refuse, with a `ValueError`, a decoder that cannot take the features of this net's encoder."""
    if decoder is None:
        if isinstance(net, TowerNetConfig):
            raise ValueError("net tower: only encodes; set decoder_net, for example {kind: vit}")
        return
    if isinstance(net, QueryConfig) and not isinstance(decoder, QueryConfig | FlowDecoderConfig):
        raise ValueError(
            f"decoder_net {decoder.kind}: takes a map, net query gives {net.tokens} tokens; use query or flow"
        )
    if isinstance(decoder, QueryConfig) and (not isinstance(net, QueryConfig) or net.tokens != decoder.tokens):
        raise ValueError(
            f"decoder_net query: takes {decoder.tokens} tokens without a place, which net {net.kind} does not give"
        )
    if decoder.image_channels != net.image_channels:
        raise ValueError(
            f"decoder_net gives {decoder.image_channels} image channels, net takes {net.image_channels}: must be equal"
        )
    if not isinstance(decoder, FlowDecoderConfig) and decoder.downsampling != net.downsampling:
        raise ValueError(
            f"decoder_net has a downsampling of {decoder.downsampling}, net one of {net.downsampling}: must be equal"
        )


def build_nets(
    config: NetConfig,
    encoder_channels: int,
    decoder_channels: int,
    *,
    decoder: DecoderConfig | None = None,
    image_size: tuple[int, int] = (256, 256),
) -> tuple[nn.Module, nn.Module]:
    """Encoder that gives `encoder_channels`, and decoder that takes `decoder_channels`.

    decoder     a decoder of another kind or size than that of `config`
    image_size  for nets that take images of one size only
    """
    geometry, other = geometry_of(config, image_size), config if decoder is None else decoder

    def made(kind: Any, options: NetConfig | DecoderConfig, channels: int) -> nn.Module:
        part: nn.Module = kind(options, channels, geometry) if kind in _PLACED else kind(options, channels)
        return part

    return (
        made(_ENCODERS[config.kind], config, encoder_channels),
        made(_DECODERS[other.kind], other, decoder_channels),
    )
