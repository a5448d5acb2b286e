"""DiffAugment against slow loops, and the randomness being an argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tokenizers_mm.losses.augment import augment, draw

EVERYTHING = ("color", "translation", "cutout")
CPU = torch.device("cpu")


@pytest.fixture
def image() -> Tensor:
    return torch.rand(6, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def numbers() -> Tensor:
    return draw(6, CPU, torch.Generator().manual_seed(1))


def test_color_by_hand(image: Tensor, numbers: Tensor) -> None:
    for result, x, u in zip(augment(image, numbers, ["color"]), image, numbers.tolist(), strict=True):
        x = x + u[0] - 0.5
        x = x.mean(0) + 2 * u[1] * (x - x.mean(0))
        torch.testing.assert_close(result, x.mean() + (u[2] + 0.5) * (x - x.mean()))


def test_translation_by_hand(image: Tensor, numbers: Tensor) -> None:
    """Every pixel comes from the same distance, up to 1/8 of the side; what lies outside is grey."""
    distances = set()
    for result, x, u in zip(augment(image, numbers, ["translation"]), image, numbers.tolist(), strict=True):
        down, right = int(u[3] * 5) - 2, int(u[4] * 7) - 3
        distances.add((down, right))
        for row in range(16):
            for column in range(24):
                inside = 0 <= row + down < 16 and 0 <= column + right < 24
                expected = x[:, row + down, column + right] if inside else torch.zeros(3)
                assert torch.equal(result[:, row, column], expected)
    assert len(distances) > 2


def test_translation_reaches_both_ends() -> None:
    ramp = torch.arange(1.0, 17.0).expand(2, 3, 16, 16)
    ends = torch.tensor([[0.0], [1 - 2**-24]]).expand(2, 7)
    first = augment(ramp, ends, ["translation"])[:, 0, 8]
    assert first[0].tolist() == [0, 0, *range(1, 15)]
    assert first[1].tolist() == [*range(3, 17), 0, 0]


def test_cutout_is_half_of_each_side_around_any_centre() -> None:
    many = draw(4000, CPU, torch.Generator().manual_seed(2))
    hole = augment(torch.ones(4000, 1, 8, 8), many, ["cutout"])[:, 0] == 0
    areas = hole.sum((1, 2))
    assert int(areas.max()) == 16
    assert int(areas.min()) == 4  # a corner of it
    assert hole.any(0).all()
    rows, columns = hole.any(2), hole.any(1)
    assert torch.equal(hole, rows[:, :, None] & columns[:, None])  # a rectangle
    middle = torch.full((1, 7), 0.5)
    assert augment(torch.ones(1, 1, 8, 8), middle, ["cutout"])[0, 0, 2:6, 2:6].abs().max() == 0


def test_the_middle_of_the_range_changes_nothing_but_the_hole(image: Tensor) -> None:
    middle = torch.full((6, 7), 0.5)
    torch.testing.assert_close(augment(image, middle, ["color"]), image)
    assert torch.equal(augment(image, middle, ["translation"]), image)
    assert torch.equal(augment(image, middle, []), image)


def test_equal_numbers_are_equal_changes(image: Tensor, numbers: Tensor) -> None:
    """So a pair is changed alike, a split batch as a whole one; and other numbers are other changes."""
    whole = augment(image, numbers, EVERYTHING)
    assert torch.equal(
        whole, torch.cat([augment(image[i::2], numbers[i::2], EVERYTHING) for i in (0, 1)])[[0, 3, 1, 4, 2, 5]]
    )
    other = augment(image, draw(6, CPU, torch.Generator().manual_seed(3)), EVERYTHING)
    assert (whole - other).abs().amax((1, 2, 3)).min() > 0.1


def test_numbers_come_from_the_generator_or_the_global_state() -> None:
    assert torch.equal(draw(3, CPU, torch.Generator().manual_seed(4)), draw(3, CPU, torch.Generator().manual_seed(4)))
    torch.manual_seed(5)
    first, second = draw(3, CPU), draw(3, CPU)
    torch.manual_seed(5)
    assert torch.equal(draw(3, CPU), first)
    assert not torch.equal(first, second)


def test_gradients_pass() -> None:
    x = torch.randn(1, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).requires_grad_()
    uniform = draw(1, CPU, torch.Generator().manual_seed(7)).double()
    assert torch.autograd.gradcheck(lambda image: augment(image, uniform, EVERYTHING), (x,))


@pytest.mark.parametrize(
    ("numbers", "policy", "message"),
    [
        (torch.zeros(6, 7), ["colour"], r"policy=\['colour'\]: 'colour' is none of color, translation, cutout"),
        (torch.zeros(5, 7), ["color"], r"uniform_BD has shape \(5, 7\): expected \(6, 7\); draw"),
        (torch.zeros(6, 2), ["color"], r"uniform_BD has shape \(6, 2\)"),
    ],
)
def test_bad_arguments(image: Tensor, numbers: Tensor, policy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augment(image, numbers, policy)
