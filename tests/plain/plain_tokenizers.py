"""Tokenizers as somebody writes them in an afternoon: plain classes with the four members of the protocol, no more."""

import torch
import torch.nn.functional as F

from tokenizers_mm.api import Tokens, TokenSpec


class Pool:
    """Means of blocks at four levels a channel: 64 codes, one per block."""

    def __init__(self, side=32, block=4):
        self.block = block
        self.spec = TokenSpec(image_size=(side, side), grid=(side // block, side // block), dim=3, codes=(64,))

    def encode(self, image_BCHW):
        level_BChw = ((F.avg_pool2d(image_BCHW, self.block) + 1) * 1.5).round().long().clamp(0, 3)
        code_Bhw = level_BChw[:, 0] * 16 + level_BChw[:, 1] * 4 + level_BChw[:, 2]
        return Tokens(codes_BNS=code_Bhw.flatten(1)[..., None], grid=code_Bhw.shape[1:])

    def embed(self, tokens):
        code_BN = tokens.check(self.spec).data[..., 0]
        return torch.stack([code_BN // 16, code_BN // 4 % 4, code_BN % 4], 2) / 1.5 - 1

    def decode(self, tokens):
        small_BChw = self.embed(tokens).transpose(1, 2).unflatten(2, tokens.grid)
        return F.interpolate(small_BChw, scale_factor=self.block, mode="nearest")


class Means(Pool):
    """The means themselves: continuous latents."""

    def __init__(self, side=32, block=4):
        self.block = block
        self.spec = TokenSpec(image_size=(side, side), grid=(side // block, side // block), dim=3)

    def encode(self, image_BCHW):
        mean_BChw = F.avg_pool2d(image_BCHW, self.block)
        return Tokens(latents_BND=mean_BChw.flatten(2).transpose(1, 2), grid=mean_BChw.shape[2:])

    def embed(self, tokens):
        return tokens.check(self.spec).data


class Choices:
    """Where the attribute is a dotted one."""

    coarse = Pool(block=8)


class NoDecoder:
    """Lacks two of the four."""

    spec = Pool().spec

    def encode(self, image_BCHW):
        return Pool().encode(image_BCHW)


pool = Pool()
number = 3


def make():
    return Pool()


def make_nothing():
    return None


def autoencoder():
    from tokenizers_mm import AutoencoderConfig, build_autoencoder
    from tokenizers_mm.nets.conv import ConvConfig

    net = ConvConfig(channels=4, groups=2, multipliers=(1,), blocks=1, patch=4)
    return build_autoencoder(AutoencoderConfig(image_size=(32, 32), net=net, bottleneck={"kind": "fsq"}))


def needs(side):
    return Pool(side)


def fails():
    raise RuntimeError("the weights are on the other machine")
