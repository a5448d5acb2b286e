"""Photographs that ship inside wheels: read from the installed package folder, nothing is downloaded.

Train on scikit-image's, measure on scikit-learn's: no scene occurs in both. These are nine pictures, enough to see a
tokenizer learn and to compare tokenizers, not enough to train one for use.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["MissingPhotosError", "heldout_photos", "training_photos"]

Photo = NDArray[np.uint8]

_TRAINING = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "hubble": "hubble_deep_field.jpg",
    "ihc": "ihc.png",
    "motorcycle_left": "motorcycle_left.png",
    "motorcycle_right": "motorcycle_right.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}
_HELDOUT = {"china": "china.jpg", "flower": "flower.jpg"}
_REMEDY = "pip install 'tokenizers-mm[demo]'"


class MissingPhotosError(ModuleNotFoundError):
    """The package that ships the photographs is not installed, or ships none."""


def training_photos() -> dict[str, Photo]:
    """Nine colour photographs of scikit-image, uint8 [H, W, 3], sides from 300 to 1 411 pixels."""
    return _read("skimage", "scikit-image", Path("data"), _TRAINING)


def heldout_photos() -> dict[str, Photo]:
    """The two photographs of scikit-learn, china and flower, uint8 [427, 640, 3]."""
    return _read("sklearn", "scikit-learn", Path("datasets", "images"), _HELDOUT)


def _read(module: str, package: str, folder: Path, files: dict[str, str]) -> dict[str, Photo]:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingPhotosError(
            f"the photographs are part of {package}, which is not installed: {_REMEDY}", name=module
        )
    root = Path(spec.origin).parent / folder
    missing = [name for name in files.values() if not (root / name).is_file()]
    if missing:
        raise MissingPhotosError(f"{root} lacks {', '.join(missing)}: {_REMEDY}", name=module)
    return {name: np.asarray(Image.open(root / file).convert("RGB")) for name, file in files.items()}
