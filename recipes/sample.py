"""Captions to pictures: a generator draws tokens, a tokenizer turns them into pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import backbones
from tokenizers_mm.api import Condition
from tokenizers_mm.checkpoints import fingerprint, load
from tokenizers_mm.data.images import to_uint8
from tokenizers_mm.paths import local_path

# Beside a trained generator: the fingerprint of the tokenizer whose tokens it learned.
TOKENIZER_FILE = "tokenizer.sha256"


def sample_images(
    generator: Path, tokenizer: Path, conditions: Sequence[str], *, guidance: float = 2.0, seed: int = 0
) -> Tensor:
    """Draw one image [C, H, W] uint8 per caption (or per class number, where the generator was trained on classes).

    Raises `ValueError` where the generator's tokens are not those of the tokenizer.
    """
    model, codec = backbones.load(generator), load(tokenizer)
    if model.spec != codec.spec.resized(model.spec.image_size):
        raise ValueError(
            f"{generator} draws tokens of {model.spec}, but {tokenizer} decodes {codec.spec}: "
            "use the tokenizer that encoded the training data"
        )
    learned = generator / TOKENIZER_FILE
    if learned.exists() and learned.read_text().strip() != fingerprint(codec):
        raise ValueError(
            f"{generator} learned the tokens of tokenizer {learned.read_text().strip()}, but {tokenizer} is tokenizer "
            f"{fingerprint(codec)}: use the tokenizer that encoded the training data"
        )
    condition: Condition = conditions
    if model.config.classes:
        condition = torch.tensor([_class_number(name) for name in conditions])
    return to_uint8(codec.decode(model.sample(condition, guidance=guidance, seed=seed)))


def save_strip(image_BCHW: Tensor, path: Path, height: int = 128) -> None:
    """Write the images side by side, enlarged without smoothing to at least `height` pixels."""
    strip = np.concatenate(list(image_BCHW.permute(0, 2, 3, 1).numpy()), axis=1)
    factor = max(1, height // strip.shape[0])
    local_path(path, "path").parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(strip.repeat(factor, 0).repeat(factor, 1)).save(path)


def _class_number(name: str) -> int:
    if not name.isdigit():
        raise ValueError(f"condition {name!r}: this generator was trained on classes, expected a class number")
    return int(name)
