from dataclasses import dataclass, replace
from typing import get_args

import pytest
import torch
from torch import nn

from tokenizers_mm.config import ConfigError, parse
from tokenizers_mm.nets import ConvConfig, FlowDecoderConfig, QueryConfig, TowerNetConfig, build
from tokenizers_mm.nets.build import NETS, DecoderConfig, NetConfig, build_nets, check_pair
from tokenizers_mm.nets.transformer import TransformerConfig
from tokenizers_mm.towers import TowerConfig

SIZE = TransformerConfig(width=16, depth=1, heads=2)
CONV = ConvConfig(channels=8, groups=4, multipliers=(1, 1), blocks=1)
QUERY = QueryConfig(patch=2, tokens=5, encoder=SIZE)
TOWER = TowerNetConfig(tower=TowerConfig(name="timm:test_vit"), random_init=True)


@dataclass(frozen=True, kw_only=True)
class Options:
    net: NetConfig
    decoder_net: DecoderConfig | None = None


def kinds(union):
    return [get_args(member)[0].kind for member in get_args(get_args(union)[0])]


def test_unions_are_those_of_the_table():
    assert all(net.config.kind == kind for kind, net in NETS.items())
    assert set(NETS) - set(kinds(NetConfig)) == {"flow"}
    assert set(NETS) - set(kinds(DecoderConfig)) == {"tower"}
    assert parse(Options, {"net": {"channels": 64}}, "x").net == ConvConfig(channels=64)  # no kind: conv
    with pytest.raises(ConfigError, match=r"x.net.* 'flow'"):
        parse(Options, {"net": {"kind": "flow"}}, "x")


def test_what_options_say_of_positions():
    nested = replace(QUERY, nested=True)
    said = [(net.layout, net.tokens, net.frozen, net.generative) for net in (CONV, QUERY, nested, TOWER)]
    map_ = ("raster", None, False, False)
    assert said == [map_, ("sequence", 5, False, False), ("nested", 5, False, False), ("raster", None, True, False)]
    assert FlowDecoderConfig().generative


@pytest.mark.parametrize(
    ("net", "decoder", "message"),
    [
        (TOWER, None, "net tower: only encodes; set decoder_net"),
        (CONV, QUERY, "decoder_net query: takes 5 tokens without a place, net conv gives a map"),
        (QUERY, CONV, "decoder_net conv: takes a map, net query gives 5 tokens"),
        (CONV, replace(CONV, patch=2), "decoder_net has a downsampling of 4, net one of 2"),
        (CONV, replace(CONV, image_channels=1), "decoder_net gives 1 image channels, net takes 3"),
        (CONV, FlowDecoderConfig(image_channels=1), "decoder_net gives 1 image channels, net takes 3"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(net, decoder, message):
    with pytest.raises(ValueError, match=message):
        check_pair(net, decoder)


@pytest.mark.parametrize("net", [CONV, QUERY], ids=["map", "tokens"])
def test_a_flow_takes_whatever_there_is(net):
    image = torch.zeros(1, 3, 8, 8)
    flow = FlowDecoderConfig(patch=2, size=SIZE, steps=1)
    encoder, decoder = build_nets(net, 6, 6, decoder=flow, image_size=(8, 8))
    assert decoder(encoder(image)).shape == image.shape


def test_every_half_is_made_with_its_options_channels_and_geometry(monkeypatch):
    made = []

    def half(*arguments):
        made.append(arguments)
        return nn.Identity()

    monkeypatch.setitem(build.NETS, "conv", build.Net(ConvConfig, half, half))
    build_nets(CONV, 6, 3, image_size=(8, 12))
    assert made == [(CONV, 6, ((8, 12), 2, None)), (CONV, 3, ((8, 12), 2, None))]
