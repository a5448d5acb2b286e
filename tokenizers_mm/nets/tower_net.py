"""A frozen, pretrained network as the encoder of a tokenizer.

"Diffusion Transformers with Representation Autoencoders" (RAE, https://arxiv.org/abs/2510.11690): the features of a
network that understands images are the latents, and only a decoder is trained, usually a ViT with noised latents
(`noise` of the autoencoder). With a quantizer, and convolutions around it, the same gives semantic codes.

Shape letters: B batch, C channels, H and W pixels, D channels of the tower, h and w rows and columns of positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_mm.geometry import as_map
from tokenizers_mm.nets.geometry import Geometry
from tokenizers_mm.nets.options import NetOptions
from tokenizers_mm.towers import Tower, TowerConfig, build_tower


@dataclass(frozen=True, kw_only=True)
class TowerNetConfig(NetOptions):
    """A tower as encoder; it has no decoder of its own, so `decoder_net` says which.

    tower         the network, and the size it sees images in (DINOv2 of patch 14 at 224 pixels gives 16 x 16 positions,
                  as an image of 256 pixels with a downsampling of 16)
    downsampling  pixels per position along each side; another grid of the tower's is resized (bilinear) to this one
    random_init   random weights: a tower that understands nothing, to compare with
    """

    frozen: ClassVar[bool] = True
    tower: TowerConfig
    kind: Literal["tower"] = "tower"
    downsampling: int = 16
    random_init: bool = False

    def __post_init__(self) -> None:
        """Refuse a downsampling below one."""
        if self.downsampling < 1:
            raise ValueError(f"downsampling={self.downsampling}: expected at least 1 pixel per position")

    @property
    def image_channels(self) -> int:
        """Towers take colour images."""
        return 3


class TowerEncoder(nn.Module):
    """Image [B, 3, H, W] in [-1, 1] -> patch features [B, D, H / f, W / f] with f = config.downsampling; never trained.

    The tower's weights are buffers here and in the state dict, so a saved tokenizer needs no other file. Built without
    memory (on "meta", as loading does), the tower has random weights until a state dict is assigned, and fetches none.
    """

    def __init__(self, config: TowerNetConfig, out_channels: int, _: Geometry | None = None) -> None:
        super().__init__()
        self.downsampling = config.downsampling
        self.tower = _built(config)
        width = self.tower.spec.dim
        if out_channels != width:
            raise ValueError(f"z_channels={out_channels}: {self.tower.name} gives {width} channels, expected as many")

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Encode; gradients reach the image, and nothing of the tower."""
        semantics = self.tower.semantics(image_BCHW)
        grid = (image_BCHW.shape[2] // self.downsampling, image_BCHW.shape[3] // self.downsampling)
        h_BDhw = as_map(semantics.patch_BND, semantics.grid)
        if semantics.grid == grid:
            return h_BDhw
        return F.interpolate(h_BDhw, grid, mode="bilinear", align_corners=False)


def _built(config: TowerNetConfig) -> Tower:
    if torch.get_default_device().type != "meta":
        return build_tower(config.tower, random_init=config.random_init)
    with torch.device("cpu"):
        tower = build_tower(config.tower, random_init=True)
    if not config.random_init:
        tower.name = tower.name.removesuffix(" (random weights)")
    return tower
