"""A tokenizer whose features are known: the mean colour."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tokenizers_mm.api import Tokens, TokenSpec

CLASSES = ("red", "green", "blue")


class MeanColour:
    """One position: the mean colour; texts are the colour they name."""

    spec = TokenSpec(image_size=(4, 4), grid=(1, 1), dim=3)

    def encode(self, image_BCHW: Tensor) -> Tokens:
        return Tokens(latents_BND=image_BCHW.mean((2, 3))[:, None], grid=(1, 1))

    def embed(self, tokens: Tokens) -> Tensor:
        return tokens.data

    def decode(self, tokens: Tokens) -> Tensor:
        raise AssertionError("features need no decoder")

    def text_features(self, captions: Sequence[str]) -> Tensor:
        return torch.tensor([[2.0 * (name in caption) - 1 for name in CLASSES] for caption in captions])


@pytest.fixture
def mean_colour() -> MeanColour:
    return MeanColour()
