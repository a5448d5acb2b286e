"""Semantic figures of a tokenizer as rows of a table: linear probe, nearest neighbours, zero-shot, alignment.

Shape letters: N images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenizers_mm.api import Tokenizer
from tokenizers_mm.data import Labelled
from tokenizers_mm.measure.alignment import alignment
from tokenizers_mm.measure.classification import Classification, CrossValidation, cross_validate
from tokenizers_mm.measure.probes import linear_probe, nearest_neighbours, pooled_features
from tokenizers_mm.measure.protocol import Measurement, Protocol
from tokenizers_mm.measure.zero_shot import TEMPLATES, class_texts, zero_shot
from tokenizers_mm.semantics import Semantics, semantics_of

__all__ = ["ProbeData", "batches_of", "probe_figures", "teacher_figures", "zero_shot_figures"]

_NEIGHBOURS = 20


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """Labelled images to probe on: a training and a test set, or one set that is cut into folds.

    name  of the data, for the protocol
    """

    name: str
    train: Labelled
    test: Labelled | None = None
    folds: int = 5

    def known(self) -> ProbeData:
        """Without the images whose class is not known; `ValueError` where none is left."""
        parts = [part and part.subset(part.labels_N >= 0) for part in (self.train, self.test)]
        if any(part is not None and not len(part) for part in parts):
            raise ValueError(f"{self.name}: no image has a class; a probe needs labels or a sub-folder per class")
        assert parts[0] is not None
        return replace(self, train=parts[0], test=parts[1])


def batches_of(data: Labelled, batch: int = 64) -> Iterator[Tensor]:
    """Float images [B, 3, H, W] in [-1, 1], in order."""
    for start in range(0, len(data), batch):
        yield data.tensor(slice(start, start + batch))


def probe_figures(
    tokenizer: Tokenizer, data: ProbeData, protocol: Protocol, device: torch.device | str = "cpu"
) -> list[Measurement]:
    """Linear probe and nearest neighbours on pooled features, with chance and the majority baseline."""
    data = data.known()
    train_ND = pooled_features(tokenizer, batches_of(data.train), device)
    test_ND = None if data.test is None else pooled_features(tokenizer, batches_of(data.test), device)
    neighbours = min(_NEIGHBOURS, len(train_ND) // (2 if data.test is None else 1))
    probe = _classify(linear_probe, data, train_ND, test_ND, {})
    nearest = _classify(nearest_neighbours, data, train_ND, test_ND, {"k": neighbours})
    rows = [
        ("Linear probe", probe.accuracy, probe),
        ("Linear probe, mean of classes", probe.balanced, probe),
        ("Nearest neighbours", nearest.accuracy, nearest),
        ("Chance", probe.chance, None),
        ("Most frequent class", probe.majority, None),
    ]
    protocol = replace(
        protocol, reference=data.name, reference_sha256="", samples=len(data.train if data.test is None else data.test)
    )
    return [
        Measurement(name, 100 * value, "%", protocol, "" if source is None else _note(source))
        for name, value, source in rows
    ]


def zero_shot_figures(
    tokenizer: Tokenizer | Any,
    data: ProbeData,
    protocol: Protocol,
    *,
    templates: Sequence[str] = TEMPLATES,
    device: torch.device | str = "cpu",
) -> list[Measurement]:
    """Zero-shot accuracy on the test set (all images where there is none); `ValueError` without a text tower."""
    data = data.known()
    images = data.train if data.test is None else data.test
    text_KD = class_texts(tokenizer, images.classes, templates)
    labels_N = torch.from_numpy(images.labels_N)
    result = zero_shot(pooled_features(tokenizer, batches_of(images), device), labels_N, text_KD.cpu())
    protocol = replace(protocol, reference=data.name, reference_sha256="", samples=len(images))
    note = f"zero-shot: {len(text_KD)} classes, {len(templates)} prompts each"
    return [
        Measurement("Zero-shot", 100 * result.accuracy, "%", protocol, note),
        Measurement("Zero-shot chance", 100 * result.chance, "%", protocol),
        Measurement("Zero-shot most frequent class", 100 * result.majority, "%", protocol),
    ]


@torch.no_grad()
def teacher_figures(
    tokenizer: Tokenizer, teacher: Any, images: Sequence[Tensor], protocol: Protocol, device: torch.device | str = "cpu"
) -> list[Measurement]:
    """Cosine to a teacher (a `Tower`) after the best linear map, beside that of its mean vector."""
    own, other = (
        _together([semantics_of(x, image.to(device)).to("cpu") for image in images]) for x in (tokenizer, teacher)
    )
    result = alignment(own, other)
    protocol = replace(
        protocol, extractor=teacher.name, extractor_sha256=teacher.weights_sha256, samples=len(own) - len(own) // 2
    )
    note = f"alignment: after the best linear map to {teacher.name}, fitted on the other half of the images"
    rows = (
        ("Alignment cosine", result.patch),
        ("Alignment cosine of the mean vector", result.mean_patch),
        ("Alignment cosine, pooled", result.pooled),
        ("Alignment cosine of the mean vector, pooled", result.mean_pooled),
    )
    return [Measurement(name, value, "", protocol, note) for name, value in rows]


def _classify(
    measure: Any, data: ProbeData, train_ND: Tensor, test_ND: Tensor | None, options: dict[str, Any]
) -> Classification | CrossValidation:
    options |= {"names": data.train.classes}
    labels_N = torch.from_numpy(np.asarray(data.train.labels_N))
    if test_ND is None or data.test is None:
        return cross_validate(measure, train_ND, labels_N, data.train.folds(data.folds), **options)
    result: Classification = measure(train_ND, labels_N, test_ND, torch.from_numpy(data.test.labels_N), **options)
    return result


def _note(result: Classification | CrossValidation) -> str:
    if isinstance(result, Classification):
        return result.method
    share = 100 * result.spread
    return f"{result.folds[0].method}; {len(result.folds)} folds, deviation {share:.1f} points"


def _together(parts: Sequence[Semantics]) -> Semantics:
    if not parts or len({part.grid for part in parts}) > 1:
        raise ValueError("alignment needs images, all of one size: choose a size")
    patch_BND, pooled_BD = torch.cat([p.patch_BND for p in parts]), torch.cat([p.pooled_BD for p in parts])
    return Semantics(patch_BND, pooled_BD, parts[0].grid)
