"""The Inception network of the Frechet Inception Distance: that of 2015, as TensorFlow computes it.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv 1512.00567. The weights are those
that torch-fidelity and pytorch-fid publish (converted from TensorFlow's inception-2015-12-05). The network differs from
torchvision's in what those weights were trained with: means next to an edge leave the padding out, the last block takes
a maximum instead of a mean, and there are 1008 classes. Images are resized to 299 x 299 as TensorFlow 1 did, bilinear
with neither half-pixel offsets nor antialiasing, and scaled by (x - 128) / 128.

Shape letters: B batch, C channels, H and W pixels, D features (2048).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception as blocks

__all__ = ["Inception"]

_SIZE = 299
Interpolation = Literal["tensorflow", "pytorch"]


class Inception(nn.Module):
    """Levels 0..255 of RGB images [B, 3, H, W] -> pooled features [B, 2048]. Parameter names are torchvision's.

    resize  tensorflow: as above, what torch-fidelity and ADM's evaluator compute;
            pytorch: bilinear with half-pixel offsets, then x / 127.5 - 1, what pytorch-fid and its copies compute
    """

    def __init__(self, resize: Interpolation = "tensorflow") -> None:
        super().__init__()
        self.resize = resize
        kinds = [blocks.BasicConv2d, _A, blocks.InceptionB, _C, blocks.InceptionD, _E, blocks.InceptionAux]
        network = blocks.Inception3(1008, aux_logits=False, inception_blocks=kinds, init_weights=False)
        network.Mixed_7c.pool = _maximum
        self.fc = network.fc
        for name, child in network.named_children():
            self.add_module(name, child)

    def forward(self, levels_BCHW: Tensor) -> Tensor:
        """Features of the last pooling layer."""
        if self.resize == "tensorflow":
            x = (resize_like_tensorflow_1(levels_BCHW, _SIZE) - 128) / 128
        else:
            x = F.interpolate(levels_BCHW, (_SIZE, _SIZE), mode="bilinear", align_corners=False) / 127.5 - 1
        for name, child in self.named_children():
            if name not in ("fc", "dropout"):
                x = child(x)
        features_BD: Tensor = x.flatten(1)
        return features_BD


def resize_like_tensorflow_1(x_BCHW: Tensor, size: int) -> Tensor:
    """Bilinear to size x size; output pixel i is read at i * (input side / size), no half-pixel offset, in float32."""
    for dim in (2, 3):
        side = x_BCHW.shape[dim]
        place = torch.arange(size, device=x_BCHW.device, dtype=torch.float32) * (side / size)
        low = place.long()
        shape = [1, 1, 1, 1]
        shape[dim] = size
        share = (place - low).to(x_BCHW.dtype).view(shape)
        high = (low + 1).clamp_max(side - 1)
        left, right = x_BCHW.index_select(dim, low), x_BCHW.index_select(dim, high)
        x_BCHW = left + (right - left) * share
    return x_BCHW


def _mean(x_BCHW: Tensor) -> Tensor:
    return F.avg_pool2d(x_BCHW, 3, 1, 1, count_include_pad=False)


def _maximum(x_BCHW: Tensor) -> Tensor:
    return F.max_pool2d(x_BCHW, 3, 1, 1)


class _A(blocks.InceptionA):  # type: ignore[misc]
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_mean(x)),
        ]


class _C(blocks.InceptionC):  # type: ignore[misc]
    def _forward(self, x: Tensor) -> list[Tensor]:
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(twice)),
            self.branch_pool(_mean(x)),
        ]


class _E(blocks.InceptionE):  # type: ignore[misc]
    pool = staticmethod(_mean)

    def _forward(self, x: Tensor) -> list[Tensor]:
        once, twice = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return [
            self.branch1x1(x),
            torch.cat([self.branch3x3_2a(once), self.branch3x3_2b(once)], 1),
            torch.cat([self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)], 1),
            self.branch_pool(self.pool(x)),
        ]
