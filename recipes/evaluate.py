"""Measure a saved tokenizer on an image folder or on the held-out photographs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenizers_mm.checkpoints import load
from tokenizers_mm.data.images import Preprocess, decode, find_images, to_tensor
from tokenizers_mm.data.photos import heldout_photos
from tokenizers_mm.losses.perceptual import perceptual
from tokenizers_mm.measure.evaluate import Evaluation, evaluate
from tokenizers_mm.measure.protocol import Protocol

PHOTOS = "photos"


def evaluate_images(
    tokenizer: Path,
    images: str,
    *,
    size: int | None = None,
    perceptual_name: str = "none",
    limit: int | None = None,
) -> Evaluation:
    """Measure the tokenizer in a folder.

    images  an image folder, or "photos" for the two held-out photographs
    size    resize the shorter side to this and crop the centre; None: native size, padded to whole positions
    """
    model = load(tokenizer)
    network = None if perceptual_name == "none" else perceptual(perceptual_name)
    preprocess = None if size is None else Preprocess(size, model.downsampling)
    protocol = Protocol(
        reference="photographs of scikit-learn, held out" if images == PHOTOS else Path(images).name,
        resize="none" if size is None else f"shorter side to {size}, bicubic, antialiased",
        crop="none" if size is None else f"centre {size} x {size}",
    )
    batches = (_prepared(pixels, preprocess) for pixels in islice(_pixels(images), limit))
    return evaluate(model, batches, protocol=protocol, perceptual=network, pad=True)


def _pixels(images: str) -> Iterator[NDArray[np.uint8]]:
    if images == PHOTOS:
        yield from heldout_photos().values()
        return
    for path in find_images(Path(images)):
        yield decode(path)


def _prepared(pixels: NDArray[np.uint8], preprocess: Preprocess | None) -> Tensor:
    return to_tensor(pixels if preprocess is None else preprocess(pixels))[None]
