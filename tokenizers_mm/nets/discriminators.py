"""Discriminators: networks that tell originals from reconstructions, each with logits at many positions.

`PatchDiscriminator` is that of pix2pix (https://arxiv.org/abs/1611.07004) and VQGAN (https://arxiv.org/abs/2012.09841):
strided convolutions whose every logit judges one patch. `FeatureDiscriminator` has small trained heads on several
depths of a frozen pretrained network (https://arxiv.org/abs/2111.01007, Projected GAN; https://arxiv.org/abs/2301.09515,
StyleGAN-T; VAR, UniTok and RAE train against the latter on DINO).

All map images [B, C, H, W] in [-1, 1] to a list of logits [B, h, w], one entry for each head; high means original.

Shape letters: B batch, C image channels, H and W pixels, D features, h and w positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm, spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from tokenizers_mm.nets.fuse_batch_norm import fold_batch_norms
from tokenizers_mm.towers import lite0_tower, timm_tower

__all__ = [
    "Discriminator",
    "DiscriminatorConfig",
    "FeatureConfig",
    "FeatureDiscriminator",
    "PatchConfig",
    "PatchDiscriminator",
    "build_discriminator",
]

_SLOPE, _WIDEST, _GROUPS = 0.2, 8, 8


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """Shape of a PatchGAN discriminator; 3 layers judge patches of 70 pixels.

    channels        width of the first convolution, a multiple of 8; doubled by each of the next, up to 8 times
    layers          convolutions of stride 2, followed by one of stride 1 and the one that gives the logits
    norm            "group": over 8 groups of channels of each image by itself; "none"; "batch": over all images of a
                    micro-batch, as published. The last makes a step depend on how its batch is split
    spectral        divide every convolution by its largest singular value (https://arxiv.org/abs/1802.05957)
    image_channels  of the images
    """

    kind: Literal["patch"] = "patch"
    channels: int = 64
    layers: int = 3
    norm: Literal["group", "batch", "none"] = "group"
    spectral: bool = False
    image_channels: int = 3

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built."""
        if self.channels < 1 or self.channels % _GROUPS:
            raise ValueError(f"channels={self.channels}: expected a positive multiple of {_GROUPS}")
        for name in ("layers", "image_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")


class Discriminator(nn.Module):
    """What discriminators share: spectral norms that stand still within a training step."""

    def train(self, mode: bool = True) -> Self:
        """Set the mode, but keep the estimates of singular values as they are; see `advance`."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _SpectralNorm):
                module.eval()
        return self

    def advance(self) -> None:
        """One power iteration of every spectral norm: once after each optimiser step.

        Iterating in every forward pass, as usual, makes a step depend on the number of its micro-batches.
        """
        for module in self.modules():
            if not is_parametrized(module, "weight"):
                continue
            norms: Any = module.parametrizations
            norms.weight.train()
            _ = module.weight  # reading it iterates
            norms.weight.eval()


class PatchDiscriminator(Discriminator):
    """Convolutions alone: any image size from `smallest` pixels a side.

    With norm "batch" the parameters have the names and shapes of VQGAN's `loss.discriminator`.
    """

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        c = config
        widths = [c.channels * min(2**i, _WIDEST) for i in range(c.layers + 1)]
        layers: list[nn.Module] = [_conv(c, c.image_channels, widths[0], 2), nn.LeakyReLU(_SLOPE)]
        for i in range(1, c.layers + 1):
            stride = 2 if i < c.layers else 1
            layers += [_conv(c, widths[i - 1], widths[i], stride, bias=c.norm != "batch"), _norm(c.norm, widths[i])]
            layers += [nn.LeakyReLU(_SLOPE)]
        self.main = nn.Sequential(*layers, _conv(c, widths[-1], 1, 1))
        self.smallest = 3 * 2**c.layers  # two convolutions of stride 1 take one position each
        self.image_channels = c.image_channels
        self.train()

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Logits, one head."""
        shape, channels = image_BCHW.shape, self.image_channels
        if len(shape) != 4 or shape[1] != channels or min(shape[2:]) < self.smallest:
            raise ValueError(
                f"image_BCHW has shape {tuple(shape)}: this discriminator takes [B, {channels}, H, W] of at least "
                f"{self.smallest} pixels a side; give it fewer layers, or larger images"
            )
        return [self.main(image_BCHW)[:, 0]]


def _conv(config: PatchConfig, width_in: int, width: int, stride: int, bias: bool = True) -> nn.Module:
    conv = nn.Conv2d(width_in, width, 4, stride=stride, padding=1, bias=bias)
    nn.init.normal_(conv.weight, 0.0, 0.02)
    return spectral_norm(conv) if config.spectral else conv


def _norm(norm: str, width: int) -> nn.Module:
    if norm == "none":
        return nn.Identity()
    layer = nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(_GROUPS, width)
    nn.init.normal_(layer.weight, 1.0, 0.02)
    return layer


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Heads on a frozen network.

    network     "lite0" (EfficientNet-Lite0, from a PyPI wheel) or "timm:MODEL"
    stages      which of its feature stages, or blocks of a ViT, get a head; default: all
    input_size  pixels a side that images are resized to first. Default: as they are, or what the network insists on
    channels    width of the heads, a multiple of 8
    spectral    divide every convolution of the heads by its largest singular value
    """

    kind: Literal["features"] = "features"
    network: str = "lite0"
    stages: tuple[int, ...] | None = None
    input_size: int | None = None
    channels: int = 64
    spectral: bool = True

    def __post_init__(self) -> None:
        """Refuse networks and sizes that cannot be built."""
        if self.network != "lite0" and not self.network.startswith("timm:"):
            raise ValueError(f"network={self.network!r}: expected lite0 or timm:MODEL")
        if self.channels < 1 or self.channels % _GROUPS:
            raise ValueError(f"channels={self.channels}: expected a positive multiple of {_GROUPS}")
        if self.stages is not None and (not self.stages or list(self.stages) != sorted({abs(i) for i in self.stages})):
            raise ValueError(f"stages={self.stages}: expected increasing numbers from 0; leave it out for all stages")
        if self.input_size is not None and self.input_size < 1:
            raise ValueError(f"input_size={self.input_size}: expected a positive number of pixels")


class FeatureDiscriminator(Discriminator):
    """Trained heads on features of a frozen network; one head for each stage.

    network  any module that maps images in [-1, 1] to a list of feature maps [B, D, h, w]. It is kept out of
             `parameters()` and `state_dict()`, follows `.to()`, and ignores `.train()` and `requires_grad_()`
    widths   D of each map
    """

    network: nn.Module

    def __init__(self, network: nn.Module, widths: Sequence[int], channels: int, spectral: bool) -> None:
        super().__init__()
        self.__dict__["network"] = network.eval().requires_grad_(False)
        self.heads = nn.ModuleList(_Head(width, channels, spectral) for width in widths)
        self.train()

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Logits of every head."""
        features = self.network(image_BCHW)
        return [head(feature_BDhw) for head, feature_BDhw in zip(self.heads, features, strict=True)]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self.network._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class _Head(nn.Module):
    """Project, look around once (residually), judge; no statistics over the batch."""

    def __init__(self, width_in: int, channels: int, spectral: bool) -> None:
        super().__init__()
        self.project = nn.Conv2d(width_in, channels, 1)
        self.around = nn.Conv2d(channels, channels, 3, padding=1)
        self.logit = nn.Conv2d(channels, 1, 1)
        if spectral:
            for conv in (self.project, self.around, self.logit):
                spectral_norm(conv)
        self.norm1, self.norm2 = nn.GroupNorm(_GROUPS, channels), nn.GroupNorm(_GROUPS, channels)

    def forward(self, feature_BDhw: Tensor) -> Tensor:
        """[B, D, h, w] -> [B, h, w]."""
        h_BDhw = F.leaky_relu(self.norm1(self.project(feature_BDhw)), _SLOPE)
        h_BDhw = (h_BDhw + F.leaky_relu(self.norm2(self.around(h_BDhw)), _SLOPE)) * 0.5**0.5
        logit_B1hw: Tensor = self.logit(h_BDhw)
        return logit_B1hw[:, 0]


class _Frozen(nn.Module):
    """Feature maps of a timm network, of images resized and normalised for it."""

    shift: Tensor
    scale: Tensor

    def __init__(self, config: FeatureConfig, weights: Path | None, random_init: bool) -> None:
        super().__init__()
        load = lite0_tower if config.network == "lite0" else timm_tower
        size = None if config.input_size is None else (config.input_size, config.input_size)
        network, _ = load(config.network.removeprefix("timm:"), None, size, weights, random_init)
        model: Any = fold_batch_norms(network.model)
        self.model = model
        self.stages = None if config.stages is None else list(config.stages)
        fixed = size is not None or model.pretrained_cfg.get("fixed_input_size")
        self.size = network.input_size if fixed else None
        # From [-1, 1] straight to the network's own scale: ((x + 1) / 2 - mean) / std.
        mean, std = torch.tensor(network.mean), torch.tensor(network.std)
        self.register_buffer("shift", ((0.5 - mean) / std)[:, None, None], persistent=False)
        self.register_buffer("scale", (0.5 / std)[:, None, None], persistent=False)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        if self.size is not None and tuple(image_BCHW.shape[2:]) != self.size:
            image_BCHW = F.interpolate(image_BCHW, self.size, mode="bilinear", antialias=True)
        x_BCHW = image_BCHW * self.scale + self.shift
        features: list[Tensor] = self.model.forward_intermediates(
            # On CPUs depthwise convolutions are faster where channels lie side by side.
            x_BCHW.contiguous(memory_format=torch.channels_last),
            indices=self.stages,
            intermediates_only=True,
            stop_early=True,
            output_fmt="NCHW",
        )
        return features


DiscriminatorConfig = Annotated[PatchConfig | FeatureConfig, Field(discriminator="kind")]


def build_discriminator(
    config: DiscriminatorConfig, *, weights: Path | None = None, random_init: bool = False
) -> PatchDiscriminator | FeatureDiscriminator:
    """Build a discriminator with fresh trainable parameters.

    weights      file with the frozen network's weights, for kind "features"
    random_init  leave that network at random weights: for tests

    Raises `ValueError` where the frozen network is unknown or its weights are missing.
    """
    if isinstance(config, PatchConfig):
        return PatchDiscriminator(config)
    frozen = _Frozen(config, weights, random_init)
    infos = frozen.model.feature_info  # a list, or an object around one
    every = [info["num_chs"] for info in getattr(infos, "info", infos)]
    try:
        widths = every if frozen.stages is None else [every[i] for i in frozen.stages]
    except IndexError:
        raise ValueError(f"stages={config.stages}: {config.network} has {len(every)} of them") from None
    return FeatureDiscriminator(frozen, widths, config.channels, config.spectral)
