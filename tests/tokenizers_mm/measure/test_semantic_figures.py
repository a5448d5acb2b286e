from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenizers_mm.data.labelled import Labelled
from tokenizers_mm.measure.protocol import Measurement, Protocol
from tokenizers_mm.measure.semantic_figures import ProbeData, probe_figures, teacher_figures, zero_shot_figures
from tokenizers_mm.towers import TowerConfig, build_tower

CLASSES = ("red", "green", "blue")
PROTOCOL = Protocol(reference="elsewhere", reference_sha256="of other images", samples=3)


def coloured(count: int, seed: int, unknown: int = 0) -> Labelled:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 80, (count, 4, 4, 3), dtype=np.uint8)
    images[np.arange(count), :, :, labels] += 150
    labels[:unknown] = -1
    keys = tuple(map(str, range(count)))
    return Labelled(images_NHWC=images, captions=keys, labels_N=labels, classes=CLASSES, keys=keys)


def values(figures: list[Measurement]) -> dict[str, float]:
    return {figure.name: figure.value for figure in figures}


@pytest.mark.parametrize("split", [True, False])
def test_colours_are_told_and_baselines_stand_beside(split: bool, mean_colour) -> None:
    data = ProbeData(name="colours", train=coloured(61, 0, unknown=1), test=coloured(30, 1) if split else None)
    figures = probe_figures(mean_colour, data, PROTOCOL)  # type: ignore[arg-type]
    table = values(figures)
    assert table["Linear probe"] == table["Nearest neighbours"] == table["Linear probe, mean of classes"] == 100
    assert table["Chance"] == pytest.approx(100 / 3)
    assert table["Most frequent class"] == pytest.approx(100 / 3, abs=5)
    assert {figure.protocol.reference for figure in figures} == {"colours"}
    assert {figure.protocol.samples for figure in figures} == {30 if split else 60}
    assert figures[0].protocol.reference_sha256 == ""
    assert ("5 folds" in figures[0].note) != split


def test_zero_shot_needs_no_training_but_a_text_tower(mean_colour) -> None:
    data = ProbeData(name="colours", train=coloured(6, 0), test=coloured(30, 1))
    table = values(zero_shot_figures(mean_colour, data, PROTOCOL))
    assert table == {
        "Zero-shot": 100.0,
        "Zero-shot chance": pytest.approx(100 / 3),
        "Zero-shot most frequent class": pytest.approx(100 / 3),
    }
    tower = build_tower(TowerConfig(name="timm:resnet10t", input_size=32), random_init=True)
    with pytest.raises(ValueError, match=r"classification.*tokenizer"):
        zero_shot_figures(tower, data, PROTOCOL)


def test_a_teacher_is_aligned_with_itself_and_named(mean_colour) -> None:
    teacher = build_tower(TowerConfig(name="timm:resnet10t", input_size=64), random_init=True)
    images = list(torch.split(torch.rand(24, 3, 64, 64) * 2 - 1, 7))
    figures = teacher_figures(teacher, teacher, images, PROTOCOL)
    table = values(figures)
    assert table["Alignment cosine"] > table["Alignment cosine of the mean vector"]
    assert figures[0].protocol.extractor == teacher.name
    assert figures[0].protocol.samples == 12
    other = values(teacher_figures(mean_colour, teacher, images, PROTOCOL))  # type: ignore[arg-type]
    assert other["Alignment cosine, pooled"] < table["Alignment cosine, pooled"]
    with pytest.raises(ValueError, match="all of one size: choose a size"):
        teacher_figures(mean_colour, teacher, [], PROTOCOL)  # type: ignore[arg-type]


def test_data_without_labels_is_refused(mean_colour) -> None:
    with pytest.raises(ValueError, match="colours: no image has a class"):
        probe_figures(mean_colour, ProbeData(name="colours", train=coloured(6, 0, unknown=6)), PROTOCOL)  # type: ignore[arg-type]
