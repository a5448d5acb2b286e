"""Attribute classifier, an independent judge: generated images are scored by what it reads against their captions.

A small convolutional network with one classifier per attribute, trained on real images only and sharing nothing with
any tokenizer or generator. Its score on real held-out images must be near perfect before any score of it counts; its
score on tokenizer reconstructions is the ceiling for whatever is generated through that tokenizer.

Shape letters: B, N images, A attributes, F features, K classes of one attribute, C, H, W image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["AttributeJudge", "accuracy", "train_judge"]

_FEATURES = 128
_CHUNK = 512


class AttributeJudge(nn.Module):
    """Three strided convolutions, one linear layer, one head per attribute; position survives up to the linear layer.

    classes     attribute -> number of its values
    image_size  height and width it was built for, multiples of 8; other sizes are resampled to it
    """

    def __init__(self, classes: Mapping[str, int], image_size: tuple[int, int] = (32, 32)) -> None:
        super().__init__()
        if not classes or any(count < 2 for count in classes.values()):
            raise ValueError(f"classes={dict(classes)}: expected at least one attribute, each with at least 2 values")
        if min(image_size) < 8 or any(side % 8 for side in image_size):
            raise ValueError(f"image_size={image_size}: both sides must be multiples of 8")
        self.classes = dict(classes)
        self.image_size = image_size
        self.trunk = nn.Sequential(
            *_down(3, 16),
            *_down(16, 48),
            *_down(48, 96),
            nn.Flatten(),
            nn.Linear(96 * (image_size[0] // 8) * (image_size[1] // 8), _FEATURES),
            nn.SiLU(),
        )
        self.heads = nn.ModuleList(nn.Linear(_FEATURES, count) for count in classes.values())

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Logits [B, K] of each attribute, in the order of `classes`. Images are RGB in [-1, 1]."""
        features_BF = self._features(image_BCHW)
        return [head(features_BF) for head in self.heads]

    @torch.inference_mode()
    def predict(self, image_BCHW: Tensor) -> Tensor:
        """Class indices [B, A] int64."""
        parts = [torch.stack([z.argmax(1) for z in self(part)], 1) for part in torch.split(image_BCHW, _CHUNK)]
        return torch.cat(parts)

    @torch.inference_mode()
    def features(self, image_BCHW: Tensor) -> Tensor:
        """Features [B, F] before the heads, for nearest neighbours and Frechet distances."""
        return torch.cat([self._features(part) for part in torch.split(image_BCHW, _CHUNK)])

    def _features(self, image_BCHW: Tensor) -> Tensor:
        if image_BCHW.ndim != 4 or image_BCHW.shape[1] != 3:
            raise ValueError(f"image_BCHW has shape {tuple(image_BCHW.shape)}: the judge takes RGB images [B, 3, H, W]")
        image_BCHW = image_BCHW.float().clamp(-1, 1)
        if tuple(image_BCHW.shape[2:]) != self.image_size:
            image_BCHW = F.interpolate(image_BCHW, self.image_size, mode="bilinear", antialias=True)
        features_BF: Tensor = self.trunk(image_BCHW)
        return features_BF


def train_judge(
    images_NHWC: Tensor | NDArray[Any],
    attributes_NA: Tensor | NDArray[Any],
    classes: Mapping[str, int],
    *,
    seed: int = 0,
    steps: int = 600,
    batch: int = 48,
    learning_rate: float = 4e-3,
) -> AttributeJudge:
    """Train a judge on real images (uint8) and their attributes; returns it in eval mode.

    Noise, and blur on a quarter of each batch, keep it from hanging on exact pixels: reconstructions are soft. Train it
    on all combinations of attributes, also those held out from a generator. The same arguments give the same judge on
    one machine; the caller's random state is left alone. Raises `ValueError` on arguments that disagree.
    """
    images, target_NA = torch.as_tensor(images_NHWC), torch.as_tensor(attributes_NA).long()
    _check(images, target_NA, classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = AttributeJudge(classes, (images.shape[1], images.shape[2])).train()
        optimizer = torch.optim.AdamW(judge.parameters(), learning_rate, weight_decay=1e-2, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(images), (batch,))
            logits = judge(_distort(images[rows].permute(0, 3, 1, 2).float() / 127.5 - 1))
            loss = torch.stack([F.cross_entropy(z, target_NA[rows, a]) for a, z in enumerate(logits)]).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return judge.eval()


def accuracy(predicted_BA: Tensor, target_BA: Tensor, names: Iterable[str]) -> dict[str, float]:
    """Share of images right on each attribute, and on all of them at once (`"joint"`), in 0..1."""
    names = list(names)
    if predicted_BA.shape != target_BA.shape or predicted_BA.ndim != 2 or predicted_BA.shape[1] != len(names):
        raise ValueError(
            f"predicted {tuple(predicted_BA.shape)} and target {tuple(target_BA.shape)}: "
            f"expected both [images, {len(names)}] for {', '.join(names)}"
        )
    if not len(predicted_BA):
        raise ValueError("no images: an accuracy over nothing is not a number")
    right_BA = predicted_BA == target_BA
    values = right_BA.double().mean(0).tolist()
    return dict(zip(names, values, strict=True)) | {"joint": right_BA.all(1).double().mean().item()}


def _down(channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out_channels, 3, 2, 1), nn.BatchNorm2d(out_channels), nn.SiLU()]


def _distort(image_BCHW: Tensor) -> Tensor:
    """Noise on all, half the resolution for the first quarter."""
    size, quarter = image_BCHW.shape[2:], len(image_BCHW) // 4
    soft = F.interpolate(F.avg_pool2d(image_BCHW[:quarter], 2), size, mode="bilinear")
    image_BCHW = torch.cat([soft, image_BCHW[quarter:]])
    return image_BCHW + 0.05 * torch.randn_like(image_BCHW)


def _check(images_NHWC: Tensor, target_NA: Tensor, classes: Mapping[str, int]) -> None:
    if images_NHWC.ndim != 4 or images_NHWC.shape[3] != 3 or images_NHWC.dtype != torch.uint8:
        raise ValueError(f"images are {images_NHWC.dtype} {tuple(images_NHWC.shape)}: expected uint8 [N, H, W, 3]")
    if target_NA.shape != (len(images_NHWC), len(classes)):
        raise ValueError(
            f"attributes have shape {tuple(target_NA.shape)}: expected {(len(images_NHWC), len(classes))}, "
            f"a column for each of {', '.join(classes)}"
        )
    for column, (name, count) in enumerate(classes.items()):
        low, high = int(target_NA[:, column].min()), int(target_NA[:, column].max())
        if low < 0 or high >= count:
            raise ValueError(f"attribute {name!r} has values {low}..{high}: classes says 0..{count - 1}")
