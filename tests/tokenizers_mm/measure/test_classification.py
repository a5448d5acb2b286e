from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from tokenizers_mm.data.labelled import Labelled
from tokenizers_mm.measure.classification import Classification, cross_validate
from tokenizers_mm.measure.probes import linear_probe, nearest_neighbours, pooled_features


def blobs(count: int, noise: float, classes: int = 4, dim: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    return centres[labels] + noise * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), labels


MEASURES = [linear_probe, nearest_neighbours]


@pytest.mark.parametrize("measure", MEASURES)
def test_separable_classes_are_told_and_shuffled_labels_are_not(measure) -> None:  # type: ignore[no-untyped-def]
    (train, train_labels), (test, test_labels) = blobs(400, 0.5), blobs(400, 0.5, seed=1)
    assert measure(train, train_labels, test, test_labels).accuracy > 0.97
    shuffled, other = train_labels[torch.randperm(400)], test_labels[torch.randperm(400)]
    assert measure(train, shuffled, test, other).accuracy == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("measure", MEASURES)
def test_baselines_stand_beside_the_accuracy(measure) -> None:  # type: ignore[no-untyped-def]
    train, test = torch.randn(60, 3), torch.randn(10, 3)
    train_labels = torch.tensor([5] * 40 + [7] * 20)
    test_labels = torch.tensor([5] * 3 + [7] * 7)
    result = measure(train, train_labels, test, test_labels)
    assert (result.chance, result.majority) == (0.5, pytest.approx(0.3))
    assert set(result.predicted_N.tolist()) <= {5, 7}
    assert result.accuracy == pytest.approx(float((result.predicted_N == test_labels).double().mean()))
    assert "predicted_N" not in json.loads(json.dumps(result.record()))


def test_a_frequent_class_does_not_lift_the_balanced_accuracy() -> None:
    labels = torch.tensor([0] * 9 + [1])
    result = Classification.of("all zero", torch.zeros(10, dtype=torch.int64), labels, classes=2, most_frequent=0)
    assert (result.accuracy, result.majority, result.balanced) == (pytest.approx(0.9), pytest.approx(0.9), 0.5)


def test_neighbours_vote_as_scikit_learn_with_the_same_weights() -> None:
    (train, train_labels), (test, test_labels) = blobs(150, 3.0), blobs(100, 3.0, seed=1)
    ours = nearest_neighbours(train, train_labels, test, test_labels, k=20, temperature=0.07, block=33)
    unit = torch.nn.functional.normalize
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    theirs.fit(unit(train).numpy(), train_labels.numpy())
    assert ours.predicted_N.tolist() == theirs.predict(unit(test).numpy()).tolist()
    one = nearest_neighbours(train, train_labels, train, train_labels, k=1)
    assert one.accuracy == 1.0


def test_the_penalty_is_chosen_on_a_held_out_part() -> None:
    (train, train_labels), (test, test_labels) = blobs(300, 4.0, dim=100), blobs(400, 4.0, dim=100, seed=1)
    train_labels[:100] = (train_labels[:100] + 1) % 4  # wrong labels, which only a penalty keeps from being learned
    chosen = linear_probe(train, train_labels, test, test_labels)
    weak = linear_probe(train, train_labels, test, test_labels, l2=1e-5)
    assert chosen.accuracy > weak.accuracy
    assert "held out" in chosen.method
    assert "l2 1e-05 (given)" in weak.method
    again = linear_probe(train, train_labels, test, test_labels)
    assert torch.equal(chosen.predicted_N, again.predicted_N)


def test_every_image_is_tested_once_on_what_the_others_taught() -> None:
    x, labels = blobs(60, 0.4)
    images = np.zeros((60, 1, 1, 3), np.uint8)
    keys = tuple(map(str, range(60)))
    data = Labelled(images_NHWC=images, captions=keys, labels_N=labels.numpy(), classes=("a", "b", "c", "d"), keys=keys)
    result = cross_validate(linear_probe, x, data.labels_N, data.folds(5), l2=0.01)
    assert len(result.folds) == 5
    assert sum(len(fold.predicted_N) for fold in result.folds) == 60
    assert result.accuracy == pytest.approx(np.mean([fold.accuracy for fold in result.folds]))
    assert result.spread == pytest.approx(np.std([fold.accuracy for fold in result.folds], ddof=1))
    assert result.accuracy > 0.9 > result.majority
    assert len(json.loads(json.dumps(result.record()))["folds"]) == 5
    # Labels that say nothing of the features: chance, which an image tested by what it taught itself would beat.
    noise = torch.randn(60, 200, generator=torch.Generator().manual_seed(0))
    assert cross_validate(linear_probe, noise, labels, data.folds(5), l2=0.01).accuracy < 0.45


def test_pooled_features_do_not_depend_on_the_batches(mean_colour) -> None:  # type: ignore[no-untyped-def]
    images = torch.rand(5, 3, 4, 4)
    pooled = pooled_features(mean_colour, torch.split(images, 2))
    torch.testing.assert_close(pooled, images.mean((2, 3)))
    with pytest.raises(ValueError, match="images is empty"):
        pooled_features(mean_colour, [])


@pytest.mark.parametrize("measure", MEASURES)
def test_a_class_missing_from_training_is_named(measure) -> None:  # type: ignore[no-untyped-def]
    x, labels = blobs(40, 0.5)
    kept = labels != 2
    with pytest.raises(ValueError, match=r"class 'bag':.*training"):
        measure(x[kept], labels[kept], x, labels, names=("shirt", "shoe", "bag", "coat"))
    with pytest.raises(ValueError, match="class 2: in the test set"):
        measure(x[kept], labels[kept], x, labels)
    # A class that is never tested may be missing: the others are told apart under their own numbers.
    assert set(measure(x[kept], labels[kept], x[kept], labels[kept]).predicted_N.tolist()) == {0, 1, 3}


def test_bad_input_is_refused() -> None:
    x, labels = blobs(40, 0.5)
    with pytest.raises(ValueError, match=r"k=41, temperature=0\.07: expected.*1.*40"):
        nearest_neighbours(x, labels, x, labels, k=41)
    with pytest.raises(ValueError, match="has 1 class"):
        linear_probe(x, labels * 0, x, labels * 0)
    with pytest.raises(ValueError, match=r"test: labels are torch\.int64 up to 3"):
        linear_probe(x[labels < 3], labels[labels < 3], x, labels, names=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"labels \(39,\)"):
        nearest_neighbours(x, labels[1:], x, labels)
    with pytest.raises(ValueError, match=r"features.*16 channels,.*features 15"):
        linear_probe(x, labels, x[:, 1:], labels)
    with pytest.raises(ValueError, match=r"held_out=0\.2.*4 training images.*none:.*l2"):
        linear_probe(x[:4], labels[:4], x, labels)
    with pytest.raises(ValueError, match="1 folds"):
        cross_validate(linear_probe, x, labels, [(range(20), range(20, 40))])
    with pytest.raises(ValueError, match=r"0:.*image.*training"):
        cross_validate(linear_probe, x, labels, [(list(range(21)), list(range(20, 40)))] * 2)
