"""Frechet distance of reconstructions to their originals, beside the distance of real images to real images.

The distance of two finite sets is above zero even where both are real, so it is printed with that floor: other real
images (the training set) against the originals or, where none are given, two halves of the originals.

Shape letters: B batch, C image channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from tokenizers_mm.measure.extractors import Extractor
from tokenizers_mm.measure.frechet import FeatureStatistics, frechet_distance
from tokenizers_mm.measure.protocol import Measurement, Protocol
from tokenizers_mm.measure.reconstruction import levels, original_levels

__all__ = ["Fidelity"]


class Fidelity:
    """Statistics of originals and reconstructions in the features of one extractor, batch by batch.

    rounding  of reconstructions, as in `Protocol.frechet_rounding`; originals are whole levels already
    """

    def __init__(self, extractor: Extractor, protocol: Protocol) -> None:
        self.extractor, self.protocol = extractor, protocol
        self.seen = 0
        self.halves: tuple[FeatureStatistics, FeatureStatistics] | None = None
        self.outputs: FeatureStatistics | None = None
        self.others: FeatureStatistics | None = None

    def add(self, output_BCHW: Tensor, image_BCHW: Tensor) -> None:
        """Reconstructions and their originals, both in [-1, 1]."""
        real_BD = self._features_of_real(image_BCHW)
        fake_BD = self.extractor(levels(output_BCHW, self.protocol.frechet_rounding))
        if self.halves is None or self.outputs is None:
            self.halves = FeatureStatistics(real_BD.shape[1]), FeatureStatistics(real_BD.shape[1])
            self.outputs = FeatureStatistics(real_BD.shape[1])
        self.outputs.update(fake_BD)
        odd_B = (torch.arange(len(real_BD)) + self.seen) % 2 == 1
        self.halves[0].update(real_BD[~odd_B])
        self.halves[1].update(real_BD[odd_B])
        self.seen += len(real_BD)

    def add_others(self, images: Iterable[Tensor]) -> None:
        """Other real images, for the floor."""
        for image_BCHW in images:
            features_BD = self._features_of_real(image_BCHW)
            self.others = self.others or FeatureStatistics(features_BD.shape[1])
            self.others.update(features_BD)

    def measurements(self, protocol: Protocol) -> list[Measurement]:
        """The distance and its floor; `ValueError` for fewer than four images."""
        if self.halves is None or self.outputs is None or self.seen < 4:
            raise ValueError(
                f"{self.seen} images: {self.extractor.distance_name} compares covariances and needs at least 4 (and "
                "thousands before it says much); leave the Frechet distance out, or give more images"
            )
        protocol = replace(
            protocol, extractor=self.extractor.name, extractor_sha256=self.extractor.weights_sha256, samples=self.seen
        )
        real = FeatureStatistics(self.outputs.dim)
        for half in self.halves:
            real.merge(half)
        name, few = self.extractor.distance_name, ""
        if self.seen <= real.dim:
            few = f"{name}: fewer images ({self.seen}) than features ({real.dim}); compare equal numbers only"
        if self.others is not None:
            floor, what = frechet_distance(self.others, real), f"{self.others.count} other real images"
        else:
            floor, what = frechet_distance(*self.halves), "halves of the real images (each half as many: too high)"
        return [
            Measurement(name, frechet_distance(self.outputs, real), "", protocol, few),
            Measurement(f"{name} floor", floor, "", protocol, f"{name} floor: {what} against real images"),
        ]

    def _features_of_real(self, image_BCHW: Tensor) -> Tensor:
        features_BD: Tensor = self.extractor(original_levels(image_BCHW))
        return features_BD.cpu()
