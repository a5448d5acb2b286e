from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenizers_mm.data.sets.shapes import ATTRIBUTES, Shapes
from tokenizers_mm.measure.judge import AttributeJudge, accuracy, train_judge

CLASSES = {name: len(values) for name, values in ATTRIBUTES.items()}


def as_images(shapes: Shapes) -> Tensor:
    return torch.from_numpy(shapes.images).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.fixture(scope="module")
def judge() -> AttributeJudge:
    train = Shapes(8000, 0, "all")
    return train_judge(train.images, train.attributes, CLASSES, seed=0, steps=450)  # of 600: the gate is passed before


@pytest.fixture(scope="module")
def unseen() -> Shapes:
    return Shapes(1000, 1, "all")


def test_the_judge_passes_its_own_gate(judge: AttributeJudge, unseen: Shapes) -> None:
    scores = accuracy(judge.predict(as_images(unseen)), torch.from_numpy(unseen.attributes), CLASSES)
    assert list(scores) == [*ATTRIBUTES, "joint"]
    assert min(scores.values()) >= 0.99


def test_soft_images_are_still_read(judge: AttributeJudge, unseen: Shapes) -> None:
    half = torch.nn.functional.avg_pool2d(as_images(unseen), 2)
    soft = torch.nn.functional.interpolate(half, scale_factor=2, mode="bilinear")
    assert accuracy(judge.predict(soft), torch.from_numpy(unseen.attributes), CLASSES)["joint"] >= 0.95


def test_shuffled_captions_are_at_chance(judge: AttributeJudge, unseen: Shapes) -> None:
    scores = accuracy(judge.predict(as_images(unseen)), torch.from_numpy(unseen.attributes).roll(7, dims=0), CLASSES)
    for name, count in CLASSES.items():
        assert scores[name] == pytest.approx(1 / count, abs=0.06)
    assert scores["joint"] < 0.02


def test_noise_images_are_at_chance(judge: AttributeJudge, unseen: Shapes) -> None:
    noise = torch.rand(1000, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert accuracy(judge.predict(noise), torch.from_numpy(unseen.attributes), CLASSES)["joint"] < 0.02


def test_features_have_one_row_an_image_and_carry_no_gradient(judge: AttributeJudge, unseen: Shapes) -> None:
    features = judge.features(as_images(unseen))
    assert features.shape == (1000, 128)
    assert not features.requires_grad


def test_the_same_seed_gives_the_same_judge_and_leaves_the_random_state() -> None:
    shapes = Shapes(64, 0)
    state = torch.get_rng_state()
    first, again, other = (train_judge(shapes.images, shapes.attributes, CLASSES, seed=s, steps=3) for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    image = as_images(shapes)
    assert torch.equal(first.features(image), again.features(image))
    assert not torch.equal(first.features(image), other.features(image))


def test_accuracy_by_hand() -> None:
    predicted, target = torch.tensor([[0, 1], [1, 1], [2, 0], [2, 2]]), torch.tensor([[0, 1], [1, 0], [2, 0], [0, 2]])
    assert accuracy(predicted, target, ["a", "b"]) == {"a": 0.75, "b": 0.75, "joint": 0.5}


def test_other_sizes_are_resampled() -> None:
    judge = AttributeJudge({"shape": 4}, (32, 32)).eval()
    assert judge.predict(torch.zeros(2, 3, 48, 64)).shape == (2, 1)


def test_bad_arguments_are_refused() -> None:
    images, attributes = torch.zeros(4, 32, 32, 3, dtype=torch.uint8), torch.zeros(4, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least 2 values"):
        AttributeJudge({"shape": 1})
    with pytest.raises(ValueError, match=r"image_size=\(30, 32\)"):
        AttributeJudge({"shape": 4}, (30, 32))
    with pytest.raises(ValueError, match=r"images are torch\.float32 .* expected uint8"):
        train_judge(images.float(), attributes, {"shape": 4})
    with pytest.raises(ValueError, match=r"expected \(4, 2\),.*column"):
        train_judge(images, attributes, {"shape": 4, "size": 2})
    with pytest.raises(ValueError, match=r"attribute 'shape'.*9\.\.9: classes.*0\.\.3"):
        train_judge(images, attributes + 9, {"shape": 4})
    with pytest.raises(ValueError, match="the judge takes RGB"):
        AttributeJudge({"shape": 4}).predict(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="no images"):
        accuracy(torch.zeros(0, 1), torch.zeros(0, 1), ["a"])
    with pytest.raises(ValueError, match=r"expected both \[images, 2\] for a, b"):
        accuracy(torch.zeros(3, 1), torch.zeros(3, 1), ["a", "b"])
