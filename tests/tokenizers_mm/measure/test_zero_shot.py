from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_mm.measure.zero_shot import TEMPLATES, class_texts, zero_shot

CLASSES = ("red", "green", "blue")


class Colours:
    """A text tower that knows three words, and says the same of everything else."""

    def text_features(self, captions: Sequence[str]) -> Tensor:
        rows = torch.tensor([[1.0 + (name in caption) for name in CLASSES] for caption in captions])
        return rows * torch.linspace(1, 9, len(captions))[:, None]


def test_images_get_the_class_whose_text_is_nearest() -> None:
    labels = torch.arange(30) % 3
    pooled = F.one_hot(labels, 3).float() * 7 + 0.1 * torch.randn(30, 3)
    text = class_texts(Colours(), CLASSES)
    assert text.shape == (3, 3)
    torch.testing.assert_close(text.norm(dim=1), torch.ones(3))
    result = zero_shot(pooled, labels, text)
    assert (result.accuracy, result.chance, result.majority) == (1.0, pytest.approx(1 / 3), pytest.approx(1 / 3))
    # The wrong names for the classes: nothing is right.
    assert zero_shot(pooled, labels, text.roll(1, 0)).accuracy == 0


def test_prompts_weigh_the_same_whatever_their_length() -> None:
    class Lengths:
        def text_features(self, captions: Sequence[str]) -> Tensor:
            assert list(captions) == ["a", "an a", "b", "an b"]
            return torch.tensor([[100.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])

    text = class_texts(Lengths(), ("a", "b"), ("{}", "an {}"))
    torch.testing.assert_close(text, torch.tensor([[0.5**0.5, 0.5**0.5], [1.0, 0.0]]))


def test_every_packaged_template_names_the_class() -> None:
    assert len({template.format("cat") for template in TEMPLATES}) == len(TEMPLATES)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="object has no text_features: zero-shot classification needs"):
        class_texts(object(), CLASSES)
    with pytest.raises(ValueError, match=r"every template needs a \{\}"):
        class_texts(Colours(), CLASSES, ("a photo",))
    with pytest.raises(ValueError, match=r"pooled_QD \(2, 4\) and text_KD \(3, 3\)"):
        zero_shot(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), torch.eye(3))
    with pytest.raises(ValueError, match=r"label 3.*text: text_KD.*3"):
        zero_shot(torch.zeros(2, 3), torch.tensor([0, 3]), torch.eye(3))
    with pytest.raises(ValueError, match="1 labels for 2 images"):
        zero_shot(torch.zeros(2, 3), torch.tensor([0]), torch.eye(3))
