"""A comparison as plain data: settings, every tokenizer with its figures, the curves of ordinary codecs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from recipes.compare.entries import Entry
from tokenizers_mm.data import ALLOWED_SHARE, check_share
from tokenizers_mm.measure import CodecPoint, Evaluation
from tokenizers_mm.report import Pixels

__all__ = ["Comparison", "Measured", "Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, the same for all.

    images      an image folder, or photos, emoji, fashion-mnist: their held-out parts
    size        side of the images; None: that of `common_size`
    limit       use the first so many images
    max_unreadable  share of the images of any folder that may be unreadable
    preset      whose conventions to follow, see `measure.presets`
    perceptual  a perceptual distance, or none
    perceptual_weights  file with its weights, None: in their usual place
    frechet     extractor of a Frechet distance, or None
    probe       labelled images for linear probe and neighbours, "none", or "auto": those of `images`, where they have
                labels
    probe_limit  use so many labelled images of each part
    speed       images per second and peak memory, each tokenizer in a process of its own
    pictures    so many images are shown
    device      auto, cpu, cuda or cuda:N: where all are measured
    """

    images: str
    size: int | None = None
    limit: int | None = None
    max_unreadable: float = ALLOWED_SHARE
    preset: str = "default"
    perceptual: str = "none"
    perceptual_weights: str | None = None
    frechet: str | None = None
    probe: str = "auto"
    probe_limit: int | None = 4000
    speed: bool = True
    pictures: int = 8
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse counts below one, and what is no share."""
        for name in ("size", "limit", "probe_limit", "pictures"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        check_share("max_unreadable", self.max_unreadable)


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One tokenizer, its figures, and its pictures of the images that are shown (none where it has no decoder)."""

    entry: Entry
    evaluation: Evaluation
    pictures: tuple[Pixels, ...] = ()

    def value(self, name: str) -> float | None:
        """The figure of that name, or None."""
        return next((m.value for m in self.evaluation.measurements if m.name == name), None)

    @property
    def rate(self) -> float:
        """Bits per pixel that its tokens can carry."""
        return self.evaluation["Rate per pixel"].value

    @property
    def spent(self) -> float | None:
        """Bits per pixel that an ideal coder would need: entropy of the codes, or KL of the posterior."""
        return self.value("Marginal entropy per pixel") or self.value("KL per pixel")


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Everything that the page shows.

    title         of the images
    originals     the images that are shown
    codecs        curves of ordinary codecs
    codec_images  so many of the images, evenly spread, those are curves of
    tiled         these are in one file
    """

    settings: Settings
    title: str
    originals: tuple[Pixels, ...]
    tokenizers: tuple[Measured, ...]
    codecs: Mapping[str, Sequence[CodecPoint]]
    codec_images: int
    tiled: bool
    environment: Mapping[str, Any]

    @property
    def count(self) -> int:
        """Images measured."""
        return self.tokenizers[0].evaluation.measurements[0].protocol.samples

    def to_json(self) -> str:
        """All figures with their protocols, without pictures."""
        record = {
            "images": self.title,
            "settings": asdict(self.settings),
            "tokenizers": [one.entry.record() | one.evaluation.record() for one in self.tokenizers],
            "codecs": {
                "images": self.codec_images,
                "one_file": self.tiled,
                **{name: [point.record() for point in curve] for name, curve in self.codecs.items()},
            },
            "environment": dict(self.environment),
        }
        return json.dumps(record, indent=1, allow_nan=False)
