"""Networks that tokenizers are made of: image -> features, features -> image. One table says which there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Discriminator, Tag
from torch import nn

from tokenizers_mm.nets.causal import CausalConfig, CausalDecoder, CausalEncoder
from tokenizers_mm.nets.conv import Decoder, Encoder
from tokenizers_mm.nets.conv_config import ConvConfig
from tokenizers_mm.nets.dc import DCConfig, DCDecoder, DCEncoder
from tokenizers_mm.nets.emu3 import Emu3Config, Emu3Decoder, Emu3Encoder
from tokenizers_mm.nets.flow_decoder import FlowDecoder, FlowDecoderConfig
from tokenizers_mm.nets.geometry import Geometry
from tokenizers_mm.nets.options import DecoderOptions, NetOptions
from tokenizers_mm.nets.query import QueryConfig, QueryDecoder, QueryEncoder
from tokenizers_mm.nets.tower_net import TowerEncoder, TowerNetConfig
from tokenizers_mm.nets.vit import ViTConfig, ViTDecoder, ViTEncoder

__all__ = ["NETS", "DecoderConfig", "Net", "NetConfig", "build_nets", "check_pair", "geometry_of"]

Half = Callable[[Any, int, Geometry], nn.Module]  # of its options, the channels of the features, the geometry


class Net(NamedTuple):
    """One kind of net: the class of its options, and its two halves; None where it has only one of them."""

    config: type[DecoderOptions]
    encoder: Half | None
    decoder: Half | None


NETS: dict[str, Net] = {
    "conv": Net(ConvConfig, Encoder, Decoder),
    "dc": Net(DCConfig, DCEncoder, DCDecoder),
    "causal": Net(CausalConfig, CausalEncoder, CausalDecoder),
    "emu3": Net(Emu3Config, Emu3Encoder, Emu3Decoder),
    "vit": Net(ViTConfig, ViTEncoder, ViTDecoder),
    "query": Net(QueryConfig, QueryEncoder, QueryDecoder),
    "tower": Net(TowerNetConfig, TowerEncoder, None),
    "flow": Net(FlowDecoderConfig, None, FlowDecoder),
}


def _kind(config: Any) -> Any:
    return config.get("kind", "conv") if isinstance(config, Mapping) else getattr(config, "kind", None)


def _one_of(half: str) -> Any:
    """The options of all nets that have this half, told apart by their kind."""
    members = [Annotated[net.config, Tag(kind)] for kind, net in NETS.items() if getattr(net, half)]
    return Annotated[reduce(or_, members), Discriminator(_kind)]


if TYPE_CHECKING:
    NetConfig = NetOptions
    DecoderConfig = DecoderOptions
else:
    NetConfig = _one_of("encoder")
    DecoderConfig = _one_of("decoder")


def geometry_of(net: NetOptions, image_size: tuple[int, int]) -> Geometry:
    """Where decoders of this net's features paint."""
    return Geometry(image_size, net.downsampling, net.tokens)


def check_pair(net: NetOptions, decoder: DecoderOptions | None) -> None:
    """Refuse, with a `ValueError`, a decoder that cannot take the features of this net's encoder."""
    if decoder is None:
        if NETS[net.kind].decoder is None:
            raise ValueError(f"net {net.kind}: only encodes; set decoder_net, for example {{kind: vit}}")
        return
    decoder.check_takes(net)
    if decoder.image_channels != net.image_channels:
        raise ValueError(
            f"decoder_net gives {decoder.image_channels} image channels, net takes {net.image_channels}: must be equal"
        )


def build_nets(
    config: NetOptions,
    encoder_channels: int,
    decoder_channels: int,
    *,
    decoder: DecoderOptions | None = None,
    image_size: tuple[int, int] = (256, 256),
) -> tuple[nn.Module, nn.Module]:
    """Encoder that gives `encoder_channels`, and decoder that takes `decoder_channels`.

    decoder     a decoder of another kind or size than that of `config`
    image_size  for nets that take images of one size only

    Raises `ValueError` for a decoder that does not fit.
    """
    check_pair(config, decoder)
    options, geometry = decoder or config, geometry_of(config, image_size)
    encode, decode = NETS[config.kind].encoder, NETS[options.kind].decoder
    assert encode is not None
    assert decode is not None
    return encode(config, encoder_channels, geometry), decode(options, decoder_channels, geometry)
